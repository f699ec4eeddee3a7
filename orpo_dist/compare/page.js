"use strict";
(() => {
  const desk = document.getElementById("desk");
  const rater = document.getElementById("rater");
  const progress = document.getElementById("progress");
  const items = [...document.querySelectorAll(".item")];
  const store = "orpo-dist comparison " + desk.dataset.comparison;
  const ratings = items.map(() => ({ choice: null, left: null, right: null, seconds: 0 }));
  let at = 0, since = Date.now(), saved = true;

  // Ratings outlive a closed window, where the browser lets a file remember anything.
  const remember = () => {
    try {
      localStorage.setItem(store, JSON.stringify({ rater: rater.value, ratings, saved }));
    } catch (error) { /* the file that is saved at the end does not need it */ }
  };
  const recall = () => {
    try {
      const kept = JSON.parse(localStorage.getItem(store));
      if (!kept || kept.ratings.length !== items.length) return;
      rater.value = kept.rater;
      saved = Boolean(kept.saved);
      kept.ratings.forEach((rating, n) => Object.assign(ratings[n], rating));
    } catch (error) { /* nothing was kept */ }
  };

  const done = () => ratings.filter((rating) => rating.choice !== null).length;
  const show = () => {
    items.forEach((item, n) => item.classList.toggle("shown", n === at));
    for (const button of items[at].querySelectorAll("button")) {
      const { choice, side, quality } = button.dataset;
      const pressed = choice ? ratings[at].choice === choice
                             : ratings[at][side] === Number(quality);
      button.setAttribute("aria-pressed", String(pressed));
    }
    const left = items.length - done();
    progress.textContent = `${done()} of ${items.length} rated` +
      (left ? "" : saved ? ", saved: you are done" : ", now save");
  };
  const go = (to) => {
    ratings[at].seconds += (Date.now() - since) / 1000;
    since = Date.now();
    at = Math.min(Math.max(to, 0), items.length - 1);
    show();
    window.scrollTo(0, 0);
  };
  const changed = () => { saved = false; remember(); };
  const choose = (choice) => { ratings[at].choice = choice; changed(); go(at + 1); };
  const mark = (side, quality) => { ratings[at][side] = quality; changed(); show(); };

  const save = () => {
    if (!rater.value.trim()) {
      progress.textContent = "Please enter your name first";
      rater.focus();
      return;
    }
    const rated = ratings.map((rating, item) => ({ item, ...rating }))
      .filter((rating) => rating.choice !== null);
    const text = JSON.stringify(
      { comparison: desk.dataset.comparison, rater: rater.value.trim(), ratings: rated }, null, 2);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "application/json" }));
    const name = rater.value.trim().replace(/[^A-Za-z0-9]+/g, "-").toLowerCase() || "rater";
    link.download = `ratings-${name}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    saved = true;
    remember();
    show();
  };

  const keys = {
    ArrowLeft: () => choose("left"), ArrowRight: () => choose("right"),
    ArrowDown: () => choose("tie"), n: () => go(at + 1), p: () => go(at - 1), s: save,
  };
  for (let n = 1; n <= 5; n++) {
    keys[String(n)] = () => mark("left", n);
    keys[String((n + 5) % 10)] = () => mark("right", n);
  }
  document.addEventListener("keydown", (event) => {
    const typing = event.target === rater;
    if (typing && event.key === "Enter") rater.blur();
    if (typing || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;  // caps lock
    if (Object.hasOwn(keys, key)) { event.preventDefault(); keys[key](); }
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.id === "save") save();
    else if (button.dataset.choice) choose(button.dataset.choice);
    else mark(button.dataset.side, Number(button.dataset.quality));
    button.blur();
  });
  rater.addEventListener("input", changed);
  window.addEventListener("beforeunload", (event) => {
    if (!saved && done()) event.preventDefault();
  });

  recall();
  for (const hidden of document.querySelectorAll("[hidden]")) hidden.hidden = false;
  document.body.classList.add("rating");
  at = Math.max(0, ratings.findIndex((rating) => rating.choice === null));
  show();
})();
