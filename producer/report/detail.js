// The chosen result: its pictures to compare, and what is known of it.

const VIEWS = ["slider", "both", "difference"];

const LIMITS = { blank: "Blank", unchanged: "Unchanged", seam: "Seam", colour_shift: "Colour shift" };

const badges = (row) => [
  make("span", { class: `badge ${row.status}` }, row.status),
  row.review && make("span", { class: "badge review" }, "needs review"),
].filter(Boolean);

const lorasOf = (row) => row.loras.map(([name, scale]) => (scale === 1 ? name : `${name} × ${scale}`)).join(", ");

class Stage {
  constructor(box) {
    Object.assign(this, { box, view: "slider", at: 50, output: 0 });
  }

  // `pictures`: before, and after of every output, each [address, width, height] or null.
  show(row, pictures) {
    Object.assign(this, { row, pictures, output: 0 });
    this.draw();
  }

  draw() {
    const [before, ...afters] = this.pictures;
    const after = afters[this.output];
    const name = this.row.id;
    this.slider = null;
    this.box.replaceChildren();
    this.box.dataset.view = this.view;
    if (!before && !after) {
      this.box.append(make("p", { class: "nothing" }, "No picture could be read when this page was made."));
      return;
    }
    const [, width, height] = after ?? before;
    const picture = (one, kind, alt = "") => one && make("img", { class: kind, src: one[0], alt, draggable: "false" });
    const frame = make("div", { class: "compare" });
    frame.style.setProperty("--ratio", width / height);
    if (!before || !after) {
      const kind = before ? "before" : "after";
      frame.append(picture(before ?? after, kind, `${name} ${kind}`), make("span", { class: "word left" }, before ? "Before" : "After"));
      this.box.append(frame);
    } else if (this.view === "both") {
      const other = frame.cloneNode();
      frame.append(picture(before, "before", `${name} before`), make("span", { class: "word left" }, "Before"));
      other.append(picture(after, "after", `${name} after`), make("span", { class: "word left" }, "After"));
      other.style.setProperty("--ratio", width / height);
      this.box.append(frame, other);
    } else if (this.view === "difference") {
      const pair = [picture(before, "before", `What changed in ${name}, strengthened`), picture(after, "after")];
      frame.append(make("div", { class: "pair" }, ...pair), make("span", { class: "word left" }, "Difference, strengthened"));
      this.box.append(frame);
    } else {
      this.slider = make("input", { type: "range", min: 0, max: 100, step: 1, "aria-label": `Before and after of ${name}` });
      this.slider.addEventListener("input", () => this.move(Number(this.slider.value)));
      frame.append(
        picture(before, "before", `${name} before`), picture(after, "after", `${name} after`),
        make("span", { class: "word left" }, "Before"), make("span", { class: "word right" }, "After"),
        make("span", { class: "handle" }), this.slider,
      );
      this.frame = frame;
      this.move(this.at);
      this.box.append(frame);
    }
    if (afters.length > 1) {
      const choices = afters.map((_, k) => {
        const choice = make("button", { type: "button", "aria-pressed": String(k === this.output) }, String(k + 1));
        choice.addEventListener("click", () => {
          this.output = k;
          this.draw();
        });
        return choice;
      });
      this.box.append(make("div", { class: "outputs", role: "group", "aria-label": "Output" }, ...choices));
    }
  }

  move(at) {
    if (!this.slider) return;
    this.at = Math.min(100, Math.max(0, at));
    this.slider.value = this.at;
    this.slider.setAttribute("aria-valuetext", `${this.at} % before, ${100 - this.at} % after`);
    this.frame.style.setProperty("--at", `${this.at}%`);
  }
}

const meter = (share) => {
  const bar = make("span", { class: "meter", "aria-hidden": "true" }, make("span"));
  bar.firstChild.style.width = `${Math.min(100, 100 * share)}%`;
  bar.classList.toggle("over", share > 1);
  return bar;
};

// Everything there is to know of a row, as children of the words' place.
const words = (row) => {
  const list = make("dl", { class: "facts" });
  const fact = (name, ...value) => value.some(Boolean) && list.append(make("dt", {}, name), make("dd", {}, ...value));
  const open = (address, label) => make("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, label);
  if (row.score !== null) {
    const each = Object.entries(LIMITS).map(([name, label]) => `${label} ${row.scores[name].toFixed(2)}`.replaceAll(" ", "\u00a0")).join(" · ");
    const share = make("span", { class: "score" }, meter(row.score), `${percent(row.score)} of its limit`);
    list.append(make("dt", {}, "Gate score"), make("dd", { class: "whole" }, share, " ", make("span", { class: "quiet" }, each)));
  }
  if (row.outside !== null) {
    const kept = row.outside === 0;
    fact(
      "Outside the mask",
      make("span", { class: kept ? "good" : "bad" }, kept ? "not one pixel changed" : `differs by up to ${row.outside} of 255`),
      row.compared && kept ? ` of ${number(row.compared)}` : "",
    );
  }
  fact("LoRA", lorasOf(row) || "none");
  fact(row.seeds.length > 1 ? "Seeds" : "Seed", row.seeds.join(", "), row.rerenders ? ` (painted again ${plural(row.rerenders, "time")})` : "");
  fact("Size", row.size && `${number(row.size[0])} × ${number(row.size[1])} px`);
  fact("Time", row.seconds !== null && `${row.seconds.toFixed(row.seconds < 10 ? 2 : 0)} s`);
  fact("Job", make("code", {}, row.job), row.generation ? ` (retry ${row.generation})` : "");
  const links = [row.before && open(row.before, "before"), ...row.after.map((address, k) => address && open(address, row.after.length > 1 ? `after ${k + 1}` : "after"))].filter(Boolean);
  if (links.length) fact("Whole pictures", ...links.flatMap((link, place) => (place ? [" · ", link] : [link])));
  return [
    row.error && make("p", { class: "error" }, make("code", {}, row.error[0]), " ", row.error[1]),
    row.prompt ? make("p", { class: "prompt" }, row.prompt) : make("p", { class: "prompt quiet" }, "no prompt"),
    list,
    row.warnings.length && make("ul", { class: "warnings" }, ...row.warnings.map((warning) => make("li", {}, warning))),
  ].filter(Boolean);
};
