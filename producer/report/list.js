// Which results are shown, in which order; and the list, which has elements only for what is in sight.

const ROW = 76; // px, as in the style
const SPARE = 6; // rows above and below what is in sight

const loraNames = (row) => row.loras.map(([name]) => name);

const fits = (row, wanted, decision) => {
  const { search, status, lora, score } = wanted;
  const [what, code] = status.split("\n");
  if (search && !row.id.toLowerCase().includes(search.toLowerCase())) return false;
  if (what && row.status !== what) return false;
  if (code && row.error?.[0] !== code) return false;
  if (lora && !(lora === "\n" ? row.loras.length === 0 : loraNames(row).includes(lora))) return false;
  if (wanted.decision && wanted.decision !== (decision || "open")) return false;
  if (!score) return true;
  if (score === "review") return row.review;
  if (score === "none") return row.score === null;
  const [low, high] = score.split(":"); // above low, up to high
  return row.score !== null && row.score > low && (!high || row.score <= high);
};

const ORDERS = {
  worst: (a, b) => (b.score ?? -1) - (a.score ?? -1),
  best: (a, b) => (a.score ?? 1e9) - (b.score ?? 1e9),
  id: (a, b) => a.id.localeCompare(b.id, "en", { numeric: true }),
  slow: (a, b) => (b.seconds ?? -1) - (a.seconds ?? -1),
};

const arranged = (rows, wanted, decisions) => {
  const shown = rows.filter((row) => fits(row, wanted, decisions.of(row.key)));
  return wanted.sort ? shown.sort(ORDERS[wanted.sort]) : shown;
};

class List {
  // `draw(row)` gives a new element, `mark(element, row)` brings one up to date, `choose(row)` hears what was chosen.
  constructor(box, draw, mark, choose) {
    Object.assign(this, { box, draw, mark, rows: [], chosen: null, drawn: new Map() });
    this.space = box.appendChild(make("div", { class: "space", role: "presentation" }));
    let asked = false;
    const soon = () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        this.paint();
      });
    };
    box.addEventListener("scroll", soon, { passive: true });
    new ResizeObserver(soon).observe(box);
    box.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) choose(this.rows[option.dataset.at]);
    });
  }

  show(rows) {
    this.rows = rows;
    this.space.style.height = `${rows.length * ROW}px`;
    for (const element of this.drawn.values()) element.remove();
    this.drawn.clear();
    this.paint();
  }

  // Choose a row and bring it into sight.
  choose(row) {
    this.chosen = row;
    const at = this.rows.indexOf(row);
    if (at >= 0) {
      const top = at * ROW;
      if (top < this.box.scrollTop) this.box.scrollTop = top;
      else if (top + ROW > this.box.scrollTop + this.box.clientHeight) {
        this.box.scrollTop = top + ROW - this.box.clientHeight;
      }
    }
    this.paint();
  }

  paint() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - SPARE);
    const end = Math.min(this.rows.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW) + SPARE);
    for (const [at, element] of this.drawn) {
      if (at >= first && at < end) continue;
      element.remove();
      this.drawn.delete(at);
    }
    for (let at = first; at < end; at++) {
      const row = this.rows[at];
      let element = this.drawn.get(at);
      if (!element) {
        element = this.draw(row);
        element.id = `option-${at}`;
        element.dataset.at = at;
        element.style.top = `${at * ROW}px`;
        element.setAttribute("aria-setsize", this.rows.length);
        element.setAttribute("aria-posinset", at + 1);
        this.drawn.set(at, element);
        this.space.append(element);
      }
      element.setAttribute("aria-selected", row === this.chosen);
      this.mark(element, row);
    }
    const at = this.chosen ? this.rows.indexOf(this.chosen) : -1;
    if (this.drawn.has(at)) this.box.setAttribute("aria-activedescendant", `option-${at}`);
    else this.box.removeAttribute("aria-activedescendant");
  }
}
