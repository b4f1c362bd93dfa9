/** An element of the page by its id. */
export const element = (id) => document.getElementById(id);

/** A copy of what a template holds. */
export const copyOf = (template) => element(template).content.firstElementChild.cloneNode(true);
