// What was decided, kept in this browser: key of a result → [accept | reject, when, custom_id].

const placeOf = (run) => `inpaint-farm-review:${run}`;

const stored = (run) => {
  try {
    return new Map(Object.entries(JSON.parse(localStorage.getItem(placeOf(run)) ?? "{}")));
  } catch { // no storage, or not ours: then nothing was decided
    return new Map();
  }
};

class Decisions {
  constructor(run, keys) {
    this.run = run;
    this.keys = new Set(keys);
    this.past = []; // steps to undo, each [key, what was there before] of every result it changed
    this.kept = true; // whether the browser keeps them
    this.read();
  }

  // Also after another tab has decided something.
  read() {
    this.entries = new Map([...stored(this.run)].filter(([key]) => this.keys.has(key)));
  }

  of(key) {
    return this.entries.get(key)?.[0] ?? "";
  }

  count(decision) {
    let found = 0;
    for (const [made] of this.entries.values()) found += made === decision;
    return found;
  }

  // One step, whether of one row or of many; "" takes decisions back.
  decide(rows, decision) {
    const now = new Date().toISOString();
    const changed = rows.filter((row) => this.of(row.key) !== decision);
    if (!changed.length) return;
    this.past.push(changed.map((row) => [row.key, this.entries.get(row.key)]));
    for (const row of changed) {
      if (decision) this.entries.set(row.key, [decision, now, row.id]);
      else this.entries.delete(row.key);
    }
    this.#write();
  }

  // The keys whose decision changed.
  undo() {
    const step = this.past.pop() ?? [];
    for (const [key, before] of step) {
      if (before) this.entries.set(key, before);
      else this.entries.delete(key);
    }
    this.#write();
    return step.map(([key]) => key);
  }

  #write() {
    try {
      localStorage.setItem(placeOf(this.run), JSON.stringify(Object.fromEntries(this.entries)));
      this.kept = true;
    } catch { // full, or switched off
      this.kept = false;
    }
  }
}

// One line a decision, in the order of `entries`.
const reviewLines = (entries) => [...entries].map(([key, [decision, at, id]]) => {
  const [, job, generation] = key.match(/^(.*)\.(\d+)$/s);
  return JSON.stringify({
    custom_id: id, job_id: job, generation: Number(generation), decision, decided_at: at,
  });
});

const download = (lines) => {
  const address = URL.createObjectURL(new Blob(lines.map((line) => `${line}\n`), { type: "application/x-ndjson" }));
  make("a", { href: address, download: "review.ndjson" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
};
