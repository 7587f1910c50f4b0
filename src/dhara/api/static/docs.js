"use strict";

const METHODS = ["get", "post", "put", "patch", "delete"];

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function resolve(documentation, schema) {
  return schema && schema.$ref ? documentation.components.schemas[schema.$ref.split("/").pop()] : schema;
}

function example(documentation, schema) {
  const found = resolve(documentation, schema) || {};
  if (found.anyOf) return example(documentation, found.anyOf[0]);
  if ("default" in found) return found.default;
  if (found.type === "array") return [example(documentation, found.items)];
  if (found.type === "object") {
    const shown = [...new Set([...(found.required || []), ...(found.properties && found.properties.payload ? ["payload"] : [])])];
    return Object.fromEntries(shown.map((name) => [name, name === "type" ? "echo" : example(documentation, found.properties[name])]));
  }
  return found.type === "integer" || found.type === "number" ? 0 : found.type === "string" ? "" : {};
}

function inputs(operation) {
  return (operation.parameters || []).map((parameter) => {
    const field = element("input", { name: parameter.name, placeholder: parameter.description || "" });
    field.dataset.in = parameter.in;
    return { field, label: element("label", {}, `${parameter.name} (${parameter.in}) `, field) };
  });
}

async function send(method, path, fields, body, output) {
  const query = new URLSearchParams();
  const headers = {};
  for (const field of fields) {
    if (field.value === "" && field.dataset.in !== "path") continue;
    if (field.dataset.in === "path") path = path.replace(`{${field.name}}`, encodeURIComponent(field.value));
    else if (field.dataset.in === "query") query.append(field.name, field.value);
    else headers[field.name] = field.value;
  }
  const key = document.getElementById("key").value;
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { method: method.toUpperCase(), headers };
  if (body !== null && body !== "") {
    headers["Content-Type"] = "application/json";
    options.body = body;
  }
  output.textContent = "…";
  try {
    const answer = await fetch(path + (query.size ? `?${query}` : ""), options);
    output.textContent = `${answer.status} ${answer.statusText}\n\n${await answer.text()}`;
  } catch (error) {
    output.textContent = String(error);
  }
}

function card(documentation, method, path, operation) {
  const parameters = inputs(operation);
  const schema = operation.requestBody && operation.requestBody.content["application/json"].schema;
  const text = schema ? JSON.stringify(example(documentation, schema), null, 2) : "";
  const body = schema ? element("textarea", { value: operation.requestBody.required ? text : "", ariaLabel: "request body" }) : null;
  const output = element("pre", { ariaLive: "polite" });
  const button = element("button", { type: "button" }, "Send");
  const fields = parameters.map((one) => one.field);
  button.addEventListener("click", () => send(method, path, fields, body && body.value, output));
  const answers = Object.entries(operation.responses).map(([status, one]) =>
    element("tr", {}, element("td", {}, element("code", {}, status)), element("td", {}, one.description)));
  return element("details", {},
    element("summary", {}, element("span", { className: "method" }, method.toUpperCase()), element("code", {}, path), ` ${operation.summary}`),
    element("div", { className: "body" },
      ...parameters.map((one) => one.label), ...(body ? [body] : []), button, output,
      element("table", {}, element("tbody", {}, ...answers))));
}

async function show() {
  const main = document.getElementById("routes");
  const key = document.getElementById("key").value;
  const answer = await fetch("/openapi.json", key ? { headers: { Authorization: `Bearer ${key}` } } : {});
  if (!answer.ok) {
    main.replaceChildren(element("p", {}, `openapi.json answers ${answer.status}; give an API key.`));
    return;
  }
  const documentation = await answer.json();
  document.getElementById("version").textContent = documentation.info.version;
  const groups = new Map(documentation.tags.map((tag) => [tag.name, []]));
  for (const [path, operations] of Object.entries(documentation.paths)) {
    if (!path.startsWith("/api/")) continue;
    for (const method of METHODS) {
      if (operations[method]) groups.get(operations[method].tags[0]).push(card(documentation, method, path, operations[method]));
    }
  }
  main.replaceChildren(...[...groups].flatMap(([name, cards]) => [element("h2", {}, name), ...cards]));
}

document.getElementById("key").addEventListener("change", show);
show();
