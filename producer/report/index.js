// How far each page's review is, from what this browser keeps; and all decisions in one file.

const pages = [...document.querySelectorAll("[data-run]")].map((item) => ({ item, run: item.dataset.run, results: Number(item.dataset.results) }));

const tellAll = () => {
  let reviewed = 0;
  for (const { item, run, results } of pages) {
    const decided = stored(run).size;
    reviewed += decided;
    const bar = make("progress", { max: results, value: decided, "aria-label": "Reviewed" });
    item.querySelector(".far").replaceChildren(bar, decided === results ? "✓ reviewed" : `${number(decided)} of ${number(results)} reviewed`);
  }
  const all = pages.reduce((sum, page) => sum + page.results, 0);
  $("progress").max = all;
  $("progress").value = reviewed;
  $("progress-words").textContent = `${number(reviewed)} of ${number(all)} reviewed`;
  $("export").disabled = reviewed === 0;
};

$("export").addEventListener("click", () => download(pages.flatMap(({ run }) => reviewLines(stored(run)))));
window.addEventListener("storage", tellAll);
window.addEventListener("pageshow", tellAll);
tellAll();
