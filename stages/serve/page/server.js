const KEY = "api-key";
const JSON_TYPE = { "Content-Type": "application/json" };

/** Keep an API key for this tab. */
export const keepKey = (key) => sessionStorage.setItem(KEY, key);

/** An error in the server's words. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The models, with the concepts among them. */
export async function listModels() {
  return (await (await ask("v1/models")).json()).data;
}

/** The name and version of the model that answers. */
export async function modelTitle() {
  return (await (await ask("health")).json()).model ?? "";
}

/** A file of the page. */
export async function pageFile(name, type) {
  return new File([await (await ask(`page/${name}`)).blob()], name, { type });
}

/**
 * Paint: the previews and at last the picture, as events of the server.
 *
 * `subjects` is a list of { file, word }; without any, the picture is painted from the text alone.
 */
export async function* paint({ subjects, ...fields }, signal) {
  const asked = { ...fields, stream: true, partial_images: 3 };
  const response = subjects.length
    ? await ask("v1/images/edits", { method: "POST", body: formOf(asked, subjects), signal })
    : await ask("v1/images/generations", { method: "POST", body: JSON.stringify(asked), signal, headers: JSON_TYPE });
  let isFinished = false;
  for await (const event of events(response)) {
    if (event.error) throw new ServerError(event.error.message);
    isFinished ||= event.type.endsWith(".completed");
    yield event;
  }
  if (!isFinished) throw new ServerError("The server stopped before the picture was finished.");
}

function formOf(fields, subjects) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value !== undefined) form.append(name, value);
  for (const { file } of subjects) form.append("image[]", file, "picture");
  form.append("subjects", JSON.stringify(subjects.map(({ word }) => ({ word }))));
  return form;
}

async function ask(address, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await connected(fetch(address, { ...options, headers }));
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  const body = await response.json().catch(() => null);
  return new ServerError(body?.error?.message ?? `The server answered with the status ${response.status}.`, response.status);
}

/** Server-sent events, as objects. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await connected(reader.read());
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

/** What browsers say of a lost connection is no sentence for people. */
async function connected(promise) {
  try {
    return await promise;
  } catch (error) {
    throw error instanceof TypeError ? new ServerError("The server cannot be reached.") : error;
  }
}
