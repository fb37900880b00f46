"use strict";
// Everything can be read without this script; it adds the slider and the filters.
document.documentElement.classList.add("script");

const results = [...document.querySelectorAll(".result")];

for (const result of results) {
  const [before, after] = ["before", "after"].map((name) => result.querySelector(`.pictures img.${name}`));
  const compare = result.querySelector(".compare");
  if (!before || !after || !compare) continue;
  const handle = document.createElement("span");
  handle.className = "handle";
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 0, max: 100, value: 50 });
  slider.setAttribute("aria-label", `Compare before and after of ${result.dataset.id}`);
  const move = () => {
    compare.style.setProperty("--at", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${slider.value} % before, ${100 - slider.value} % after`);
  };
  slider.addEventListener("input", move);
  // the same data address as in the small pictures, so it lies in the page once
  compare.prepend(...[after, before].map((picture) => {
    const copy = picture.cloneNode();
    copy.alt = "";
    return copy;
  }));
  compare.append(handle, slider);
  move();
}

const form = document.querySelector(".filters form");
const count = form.querySelector("output");
const show = () => {
  const { status, lora } = form.elements;
  let shown = 0;
  for (const result of results) {
    const fits = (!status.value || result.dataset.status === status.value)
      && (!lora.value || JSON.parse(result.dataset.loras).includes(lora.value));
    result.hidden = !fits;
    shown += fits;
  }
  count.textContent = `${shown} of ${results.length} shown`;
  document.querySelector(".none").classList.toggle("shown", shown === 0);
};
form.addEventListener("change", show);
form.addEventListener("submit", (event) => event.preventDefault());
show();
