// Explorables on a page without a kernel: each figure names its module and holds its values.
class Values {
  constructor(values) { this.values = values; this.heard = []; }
  get(k) { return this.values[k]; }
  set(k, v) { this.values = { ...this.values, [k]: v }; }
  save_changes() {}
  on(event, f) { this.heard.push(f); }
  off(event, f) { this.heard = this.heard.filter((o) => o !== f); }
}

for (const el of document.querySelectorAll("figure.explorable")) {
  const given = el.querySelector("script[type='application/json']");
  import(`./${el.dataset.explorable}.js`).then((module) => module.render({ model: new Values(given ? JSON.parse(given.textContent) : module.defaults), el }));
}
