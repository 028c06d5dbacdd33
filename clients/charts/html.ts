// HTML and SVG as a tagged template that escapes what is put into it: text from a dataset or a model can hold anything.
//
//   html`<p title="${title}">${text}</p>`   attributes must be quoted; results of `html` go in unescaped, arrays joined

const MARKUP = Symbol("markup");

export interface Html {
  readonly [MARKUP]: string;
}

/** What may stand in a template. Undefined and false leave nothing. */
export type Part = Html | string | number | undefined | false | readonly Part[];

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

export const escapeHtml = (text: string): string => text.replace(/[&<>"']/g, (character) => ENTITIES[character]);

export function html(strings: TemplateStringsArray, ...parts: readonly Part[]): Html {
  return { [MARKUP]: strings.map((text, i) => text + (i < parts.length ? render(parts[i]) : "")).join("") };
}

/** The markup of a part. */
export function render(part: Part): string {
  if (part === undefined || part === false) return "";
  if (typeof part === "string" || typeof part === "number") return escapeHtml(String(part));
  return MARKUP in part ? part[MARKUP] : part.map(render).join("");
}

/** Markup of our own that needs no escaping; never text from outside. */
export const trusted = (markup: string): Html => ({ [MARKUP]: markup });
