/** The server's API, call by call. Every failure is an `ApiError`. */

const BASE = "/api/v1";

class ApiError extends Error {
  constructor(status, code, message, field = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.field = field;
  }
}

// Seeds have up to 63 bits, and JavaScript's numbers 53: long ones travel through the page as text.
const LONG_SEED = /"((?:variation_)?seed)":\s*(\d{16,})/g;
const SEED_TEXT = /"((?:variation_)?seed)":"(\d+)"/g;

export const decode = (text) => JSON.parse(text.replace(LONG_SEED, '"$1":"$2"'));
const encode = (value) => JSON.stringify(value).replace(SEED_TEXT, '"$1":$2');

async function call(method, path, body, more = {}) {
  let answer;
  try {
    const raw = body instanceof Blob;
    answer = await fetch(BASE + path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": raw ? body.type : "application/json" },
      body: body === undefined ? undefined : raw ? body : encode(body),
      ...more,
    });
  } catch (error) {
    window.dispatchEvent(new Event("unreachable"));
    throw new ApiError(0, "offline", String(error));
  }
  const text = await answer.text();
  let data = null;
  try {
    data = decode(text);
  } catch {
    if (answer.ok) throw new ApiError(answer.status, "internal", `${path}: expected JSON, got ${text.slice(0, 60)}`);
  }
  if (!answer.ok) {
    const error = data?.error ?? {};
    throw new ApiError(
      answer.status,
      error.code ?? "internal",
      error.message ?? `${answer.status} ${answer.statusText}`,
      error.field ?? null,
    );
  }
  return data;
}

const id = encodeURIComponent;

export const api = {
  state: () => call("GET", "/state"),
  model: (name) => call("GET", `/models/${id(name)}`).then((data) => data.model ?? data),
  openModel: (name) => call("POST", `/models/${id(name)}/open`, {}),
  submit: (body) => call("POST", "/jobs", body).then((data) => data.job),
  job: (job) => call("GET", `/jobs/${id(job)}`).then((data) => data.job),
  cancel: (job) => call("DELETE", `/jobs/${id(job)}`),
  move: (job, before) => call("POST", `/jobs/${id(job)}/move`, { before }),
  now: (job) => call("POST", `/jobs/${id(job)}/now`, {}),
  clear: () => call("POST", "/queue/clear", {}),
  images: (query) => call("GET", `/images?${new URLSearchParams(query)}`),
  image: (name) => call("GET", `/images/${id(name)}`).then((data) => data.image),
  remove: (name) => call("DELETE", `/images/${id(name)}`),
  restore: (name) => call("POST", `/images/${id(name)}/restore`, {}),
  metadata: (blob) => call("POST", "/metadata", blob),
  tokens: (body) => call("POST", "/tokens", body),
  saveSettings: (settings) => call("PUT", "/settings", { settings }, { keepalive: true }),
  eventsUrl: (after) => `${BASE}/events?after=${after}`,
};
