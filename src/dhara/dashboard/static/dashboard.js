// What the pages can do with script: refresh themselves, keys, copying, selection. All of it works without, too, by
// links and forms. Elements come and go by refreshes, so listeners sit on the document.
(() => {
  "use strict";
  const base = document.body.dataset.base;
  const main = () => document.getElementById("main");
  const $$ = (selector) => [...document.querySelectorAll(selector)];
  document.documentElement.classList.add("with-script");

  // --- refreshing -----------------------------------------------------------------------------------------
  const POLL = 3000, STALE = 6000, LEAST = 900;
  let seen = null, last = performance.now(), source = null, timer = null, missed = false;

  const selected = () => $$("input[name=id]:checked").length;
  const typing = () => {
    const at = document.activeElement;
    return at && main().contains(at) && (at.matches("input:not([type=checkbox]), textarea, select")) && at.value !== at.defaultValue;
  };
  const held = () =>
    document.hidden ? "hidden" : selected() ? "rows are selected" : document.querySelector("details.hold[open], dialog[open]") || typing() ? "something is open" : "";

  function state(name, text) {
    const shown = document.getElementById("live-state");
    if (shown.dataset.state === name && shown.title === text) return;
    shown.dataset.state = name;
    shown.title = text;
    shown.querySelector(".live-text").textContent = name === "on" ? "live" : name === "poll" ? "polling" : name;
  }

  function refresh(force) {
    const page = main();
    if (!page.hasAttribute("data-live")) return;
    const why = held();
    if (why && !force) {
      missed = true;
      return;
    }
    if (performance.now() - last < LEAST && !force) return;
    missed = false;
    last = performance.now();
    htmx.trigger(page, "refresh");
  }

  function tick(version) {
    const why = held();
    if (why) state("paused", `paused: ${why}`);
    else state(source ? "on" : "poll", source ? "refreshes when something changes" : "refreshes every few seconds");
    const always = main().dataset.live === "always";
    if (always || version !== seen || missed || performance.now() - last > STALE) {
      seen = version;
      refresh(false);
    }
  }

  function listen() {
    if (!main().hasAttribute("data-live")) return state("static", "this page does not change");
    if (!window.EventSource || source) return;
    const opened = new EventSource(`${base}/live`);
    opened.addEventListener("tick", (event) => {
      source = opened;
      stopPolling();
      tick(event.data);
    });
    opened.onerror = () => {
      source = null;
      poll();
      // The browser tries again by itself, unless the server refused.
      if (opened.readyState === EventSource.CLOSED) setTimeout(listen, 15000);
    };
  }

  function poll() {
    if (timer === null) timer = setInterval(() => { if (!source) tick(null); missed = true; }, POLL);
  }

  function stopPolling() {
    clearInterval(timer);
    timer = null;
  }

  document.addEventListener("visibilitychange", () => { if (!document.hidden && missed) refresh(false); });
  document.addEventListener("change", (event) => { if (event.target.name === "id" && !selected()) refresh(false); });

  // A page that says that the database is away asks again.
  const retry = main().dataset.retry;
  if (retry) setTimeout(() => location.reload(), retry * 1000);

  // The keyboard's place survives a refresh: a row is known by its id.
  let focused = null;
  document.addEventListener("htmx:before:swap", () => {
    const row = document.activeElement?.closest?.("[data-row]");
    focused = row && document.activeElement.matches(".row-link") ? row.id : null;
  });
  document.addEventListener("htmx:after:swap", () => {
    if (focused && document.activeElement === document.body) document.getElementById(focused)?.querySelector(".row-link")?.focus();
    if (window.dharaCharts) window.dharaCharts();
    count();
  });

  // --- filters: the list follows them, the URL too ----------------------------------------------------------
  let waiting = null;
  const submit = (form) => form.requestSubmit();
  document.addEventListener("formdata", (event) => {
    // Empty values stay out of the URL.
    if (event.target.method !== "get") return;
    for (const [name, value] of [...event.formData]) if (value === "") event.formData.delete(name);
  });
  document.addEventListener("change", (event) => {
    if (event.target.closest(".filters") && event.target.matches("select, input:not([type=search])")) submit(event.target.form);
  });

  // --- selection ------------------------------------------------------------------------------------------
  function count() {
    const n = selected();
    for (const shown of $$("[data-selected]")) shown.textContent = n ? `${n} selected` : "";
    for (const radio of $$("input[name=which][value=selected]")) if (n) radio.checked = true;
    const all = document.getElementById("all");
    if (all) {
      const boxes = $$("input[name=id]");
      all.checked = n > 0 && n === boxes.length;
      all.indeterminate = n > 0 && n < boxes.length;
    }
  }
  document.addEventListener("change", (event) => {
    if (event.target.id === "all") for (const box of $$("input[name=id]")) box.checked = event.target.checked;
    if (event.target.id === "all" || event.target.name === "id") count();
  });

  // --- copying --------------------------------------------------------------------------------------------
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy], [data-copy-from]");
    if (!button) return;
    const text = button.dataset.copy ?? document.getElementById(button.dataset.copyFrom).textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });

  // --- colours --------------------------------------------------------------------------------------------
  const themes = ["auto", "light", "dark"];
  const theme = () => document.documentElement.dataset.theme || "auto";
  const themeButton = document.getElementById("theme");
  const nameTheme = () => { themeButton.textContent = { auto: "Auto", light: "Light", dark: "Dark" }[theme()]; };
  nameTheme();
  themeButton.addEventListener("click", () => {
    const next = themes[(themes.indexOf(theme()) + 1) % themes.length];
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try { localStorage.setItem("dhara-theme", next); } catch { /* for this page only, then */ }
    nameTheme();
    if (window.dharaCharts) window.dharaCharts(true);
  });

  // --- keys -----------------------------------------------------------------------------------------------
  const places = { o: "/", t: "/tasks", f: "/failures", d: "/dead-letters", q: "/queues", w: "/workers", s: "/schedules", a: "/audit" };
  let going = 0;
  const help = document.getElementById("help");
  document.getElementById("help-open").addEventListener("click", () => help.showModal());

  function step(by) {
    const rows = $$(".row-link");
    if (!rows.length) return;
    const at = rows.indexOf(document.activeElement);
    const next = at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + by));
    rows[next].focus();
    rows[next].scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (event.target.closest("input, textarea, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const after = performance.now() - going < 1200;
    going = 0;
    if (after && places[event.key]) {
      location.href = base + places[event.key];
      return;
    }
    switch (event.key) {
      case "/": {
        const search = document.getElementById("q");
        event.preventDefault();
        if (search) search.select(), search.focus();
        else location.href = `${base}/tasks#q`;
        break;
      }
      case "j": step(1); break;
      case "k": step(-1); break;
      case "x": {
        const box = document.activeElement?.closest("[data-row]")?.querySelector("input[name=id]");
        if (box) box.click();
        break;
      }
      case "g": going = performance.now(); break;
      case "r": refresh(true); break;
      case "?": help.showModal(); break;
    }
  });
  if (location.hash === "#q") document.getElementById("q")?.focus();

  // On a narrow screen the pages' names scroll: the one that is open is in sight.
  document.querySelector(".top nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

  count();
  listen();
})();
