/** The questions of jobs: a small form for each, made from the JSON schema of its answer. */

export class Questions {
  #list;
  #answer;
  #forms = new Map();

  /** `answer` sends an answer, and rejects with an Error when the bot refuses it. */
  constructor(list, answer) {
    this.#list = list;
    this.#answer = answer;
  }

  open({ id, text, label, problem, schema }) {
    this.close(id);
    const form = document.createElement("form");
    form.className = "question";
    const title = make("h3", text);
    const asker = make("p", label ?? "", "asker");
    const trouble = make("p", problem ?? "", "problem");
    trouble.setAttribute("role", "alert");
    const submit = (value) => {
      if (value === undefined) return;
      this.#answer(id, value).catch((error) => (trouble.textContent = error.message));
    };
    form.append(asker, title, ...makeFields(schema ?? {}, text, submit), trouble);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      try {
        submit(read(schema ?? {}, form));
      } catch {
        trouble.textContent = "This is not JSON. Text needs quotation marks, for example \"yes\".";
      }
    });
    this.#forms.set(id, form);
    this.#list.append(form);
  }

  close(id) {
    this.#forms.get(id)?.remove();
    this.#forms.delete(id);
  }

  clear() {
    for (const id of [...this.#forms.keys()]) this.close(id);
  }
}

function makeFields(schema, text, submit) {
  const choices = schema.enum ?? (schema.type === "boolean" ? [true, false] : null);
  if (choices) {
    const row = make("div", "", "row");
    for (const choice of choices) {
      const words = { true: "Yes", false: "No" };
      const button = make("button", words[choice] ?? `${choice}`);
      button.type = "button";
      button.addEventListener("click", () => submit(choice));
      row.append(button);
    }
    return [row];
  }
  const send = make("button", "Answer", "primary");
  const fields =
    schema.type === "object"
      ? Object.entries(schema.properties ?? {}).map(([name, part]) => makeField(name, part))
      : [makeField("", schema, text)];
  return [...fields, send];
}

function makeField(name, schema, text) {
  const label = make("label", schema.title ?? name);
  const tag = schema.enum ? "select" : kindOf(schema) === "json" ? "textarea" : "input";
  const field = document.createElement(tag);
  field.name = name || "value";
  if (!name) field.setAttribute("aria-label", text);
  for (const choice of schema.enum ?? []) {
    field.append(new Option(`${choice}`, JSON.stringify(choice)));
  }
  if (kindOf(schema) === "number") {
    field.type = "number";
    field.step = schema.type === "integer" ? "1" : "any";
  }
  if (kindOf(schema) === "boolean") field.type = "checkbox";
  label.append(field);
  return label;
}

function kindOf({ type }) {
  if (type === "integer" || type === "number") return "number";
  return type === "string" || type === "boolean" ? type : "json";
}

function read(schema, form) {
  if (schema.type !== "object") return readField(schema, form.elements.value);
  const named = Object.entries(schema.properties ?? {});
  return Object.fromEntries(
    named
      .map(([name, part]) => [name, readField(part, form.elements[name])])
      .filter(([, value]) => value !== undefined),
  );
}

/** The value of a field; undefined when it was left empty. */
function readField(schema, field) {
  if (schema.enum) return JSON.parse(field.value);
  if (kindOf(schema) === "boolean") return field.checked;
  if (field.value === "") return undefined;
  if (kindOf(schema) === "number") return Number(field.value);
  return kindOf(schema) === "string" ? field.value : JSON.parse(field.value);
}

function make(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}
