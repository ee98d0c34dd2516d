// What the viewer is given: the element that it fills, and the server that it asks. In Gradio gr.HTML hands in both.

let element = null;
let server = {};

export function connect(elementOfViewer, serverOfViewer) {
  element = elementOfViewer;
  server = serverOfViewer;
}

// The first element of the viewer that fits, and all of them.
export const find = (selector) => element.querySelector(selector);
export const findAll = (selector) => [...element.querySelectorAll(selector)];

// Makes an element: make("button", { className: "chip", onclick }, "text", child). Text is never read as HTML.
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

export const makeSwatch = (color) => make("i", { className: "swatch", style: `background: ${color}` });

// The server's answer to one of its functions. When there is none, it says what went wrong and returns null.
export async function ask(name, ...args) {
  try {
    const answer = await server[name](...args);
    if (!answer.error) return answer;
    notify(answer.error);
  } catch {
    notify("The server does not answer; please check the connection and try again.");
  }
  return null;
}

// Shows one sentence at the foot of the viewer for a while. Screen readers read it out.
export function notify(sentence, ms = 7000) {
  const note = find(".studio-note");
  note.textContent = sentence;
  note.hidden = false;
  clearTimeout(notify.timer);
  notify.timer = setTimeout(hideNote, ms);
}

export function hideNote() {
  find(".studio-note").hidden = true;
}
