"use strict";
// Elements by id, elements made, numbers as words. Text from the run becomes text nodes and attributes, never HTML.

const $ = (id) => document.getElementById(id);

const make = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null && child !== false && child !== ""));
  return made;
};

const number = (value) => value.toLocaleString("en");
const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;
const percent = (share) => `${number(Math.round(100 * share))} %`;
