(function (config) {
  "use strict";
  // A page reload disconnects the output from the kernel, so this script fetches the state itself.
  const QUIET = 20000;

  function element(parent, tag, kind) {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    parent.append(made);
    return made;
  }

  // Texts come from file names, prompts and captions. They enter the page as text only.
  function write(node, text) {
    if (node.textContent !== text) node.textContent = text;
    node.hidden = !text;
  }

  function listed(parent, tag, texts) {
    while (parent.children.length > texts.length) parent.lastChild.remove();
    texts.forEach((text, at) => write(parent.children[at] || element(parent, tag), text));
  }

  function view(root) {
    const box = element(root, "div", "fastdb-live");
    box.hidden = true;
    const part = (tag, kind, parent) => element(parent || box, tag, kind);
    const name = part("div", "name"), headline = part("div", "headline"), quiet = part("div", "quiet");
    quiet.setAttribute("role", "status");
    const bars = part("div"), numbers = part("div", "numbers"), chart = part("div");
    const drawn = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    drawn.setAttribute("viewBox", "0 0 1000 100");
    drawn.setAttribute("preserveAspectRatio", "none");
    drawn.setAttribute("role", "img");
    drawn.setAttribute("aria-label", "Smoothed loss over the steps");
    chart.append(drawn);
    const range = part("div", "range", chart);
    const samples = part("img"), caption = part("div", "caption"), lines = part("dl");
    const error = part("div", "error"), notes = part("ul", "notes"), more = part("details", "quiet");
    const summary = part("summary", "", more), prompts = part("ul", "", more);
    samples.alt = "Samples";
    quiet.hidden = true;

    function bar(at, given) {
      const row = bars.children[at] || element(bars, "div", "bar");
      const label = row.children[0] || element(row, "span"), track = row.children[1] || element(row, "div", "track");
      const fill = track.firstChild || element(track, "div", "fill");
      write(label, given.label);
      track.setAttribute("role", "progressbar");
      track.setAttribute("aria-label", given.label);
      track.setAttribute("aria-valuenow", String(Math.round(100 * (given.fraction || 0))));
      fill.style.width = 100 * (given.fraction || 0) + "%";
    }

    function curve(at, line) {
      const made = drawn.children[at] || document.createElementNS("http://www.w3.org/2000/svg", "polyline");
      if (!made.parentNode) drawn.append(made);
      made.setAttribute("class", at % 2 ? "second" : "first");
      made.setAttribute("points", line.points.map(([x, y]) => 1000 * x + "," + (97 - 94 * y)).join(" "));
    }

    return {
      quiet: (text) => write(quiet, text),
      show(state, picture) {
        box.hidden = false;
        box.dataset.tone = state.tone;
        write(name, "fast DreamBooth: " + state.name);
        write(headline, state.headline);
        while (bars.children.length > state.bars.length) bars.lastChild.remove();
        state.bars.forEach((given, at) => bar(at, given));
        write(numbers, state.numbers.join("  ·  "));
        const curves = state.curves.lines || [];
        chart.hidden = !curves.length;
        while (drawn.children.length > curves.length) drawn.lastChild.remove();
        curves.forEach((line, at) => curve(at, line));
        listed(range, "span", curves.length
          ? ["loss, smoothed: " + state.curves.low + " to " + state.curves.high, state.curves.steps] : []);
        if (picture && samples.getAttribute("src") !== picture) samples.src = picture;
        samples.hidden = !picture;
        write(caption, picture ? state.caption : "");
        lines.replaceChildren();
        for (const [label, text] of state.lines) {
          const row = element(lines, "div");
          write(element(row, "dt"), label);
          write(element(row, "dd"), text);
        }
        write(error, state.error);
        const low = notes.scrollTop + notes.clientHeight >= notes.scrollHeight - 4;
        listed(notes, "li", state.notes);
        if (low) notes.scrollTop = notes.scrollHeight;
        more.hidden = !state.prompts.length;
        write(summary, "Prompts to train: " + state.prompts.length);
        listed(prompts, "li", state.prompts);
      },
    };
  }

  // Jupyter resolves the picture's relative address to the files below the server's root, after this script ran.
  function address(still, name, query) {
    const url = new URL(still.src, document.baseURI);
    const parts = url.pathname.split("/");
    if (!parts.includes("files") || parts[parts.length - 2] !== config.folder) return "";
    parts[parts.length - 1] = name;
    url.pathname = parts.join("/");
    url.searchParams.set("panel", query);
    return url.href;
  }

  function server() {
    const found = document.getElementById("jupyter-config-data");
    const page = found ? JSON.parse(found.textContent) : {};
    return { base: page.baseUrl || location.pathname.split(/\/(?:lab|notebooks|tree|doc|nbclassic)(?:\/|$)/)[0] + "/", token: page.token || "" };
  }

  function listen(receive) {
    const own = server();
    const url = new URL(own.base + "api/kernels/" + config.kernel + "/channels", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("session_id", "fastdb" + Math.random().toString(16).slice(2));
    if (own.token) url.searchParams.set("token", own.token);
    const socket = new WebSocket(url.href);
    socket.onmessage = (message) => {
      if (typeof message.data !== "string" || !message.data.includes(config.channel)) return;
      const content = JSON.parse(message.data).content || {};
      if ((content.transient || {}).display_id === config.channel) receive(content.data["application/json"]);
    };
    return socket;
  }

  function start(root) {
    root.dataset.alive = "1";
    const still = root.querySelector("img"), shown = view(root);
    let beat = null, heard = Date.now(), ended = false, failures = 0, socket = null, picture = "", seen = false, done = false;

    function receive(state, where) {
      if (state.beat !== beat) { beat = state.beat; heard = Date.now(); }
      seen = true;
      root.querySelectorAll(":scope > .floor").forEach((node) => { node.hidden = true; });
      picture = where || state.picture || picture;
      shown.show(state, state.samples ? picture : "");
      done = state.tone !== "running";
      ended = state.ended;
      if (ended && socket) socket.close();
    }

    async function fetched() {
      const url = still ? address(still, "state.json", String(Date.now())) : "";
      if (!url) return false;
      try {
        const answer = await fetch(url, { credentials: "same-origin", cache: "no-store" });
        if (!answer.ok) return false;
        const state = await answer.json();
        receive(state, state.samples ? address(still, "samples.jpg", String(state.samples)) : "");
        return true;
      } catch (error) {
        return false;
      }
    }

    function silence() {
      const seconds = Math.round((Date.now() - heard) / 1000);
      if (done || Date.now() - heard < QUIET) return shown.quiet("");
      if (!seen) root.querySelector(".fastdb-live").hidden = false;
      shown.quiet((seen ? "No news for " + seconds + " s. " : "No training panel is active at this place. ")
        + "A training continues without this page. Run this cell again, or in a terminal: " + config.command);
    }

    async function tick() {
      // A notebook removes outputs from the page while they are scrolled out of view.
      if (root.isConnected && !socket) {
        failures = !config.messages && (await fetched()) ? 0 : failures + 1;
        if (failures === (config.messages ? 1 : 5) && config.kernel && !done) {
          socket = listen(receive);
          socket.onclose = () => { socket = null; failures = 0; };
        }
      }
      silence();
      // After the training the files stay for a while, for an export in a later cell.
      if (done && failures > 60) ended = true;
      if (!ended) setTimeout(tick, done || document.hidden || !root.isConnected || failures > 60 ? 5000 : 1000);
    }

    if (config.state) return receive(config.state, "");
    // Until the first state arrives, the still picture is the better view.
    tick();
    save(root);
  }

  // An output that is not saved is gone after a reload, and the autosave runs every two minutes only.
  // JupyterLab runs a command without a question only if its link is inside a trusted output.
  function save(root) {
    const key = "fastdb-panel-" + config.id;
    try {
      if (sessionStorage.getItem(key)) return;
      sessionStorage.setItem(key, "1");
    } catch (error) {
      return;
    }
    setTimeout(() => {
      const link = document.createElement("a");
      link.dataset.commandlinkerCommand = "docmanager:save";
      link.hidden = true;
      root.append(link);
      link.click();
      link.remove();
    }, 500);
  }

  document.querySelectorAll('[id="fastdb-panel-' + config.id + '"]').forEach((root) => {
    if (!root.dataset.alive) start(root);
  });
})(CONFIG);
