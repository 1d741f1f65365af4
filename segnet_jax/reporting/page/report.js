"use strict";
(() => {
  const page = document.documentElement;
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  const element = (id) => document.getElementById(id);
  page.classList.add("js");

  // Sliders: from prediction to ground truth, the strength of the colors, and the step of the prediction.
  const blend = element("blend");
  const colors = element("colors");
  const step = element("step");

  function showMasks() {
    const truth = blend ? Number(blend.value) : 0;
    const strength = Number(colors.value);
    for (const img of all(".flip .truth")) img.style.opacity = strength * truth;
    for (const img of all(".flip .prediction")) img.style.opacity = strength * (1 - truth);
    for (const img of all(".stack .mask")) img.style.opacity = strength;
    const percent = Math.round(100 * truth);
    const ends = { 0: "prediction", 100: "truth" };
    blend?.setAttribute("aria-valuetext", ends[percent] ?? `prediction, ${percent} percent towards truth`);
    colors.setAttribute("aria-valuetext", `${Math.round(100 * strength)} percent`);
    for (const button of all("[data-range]")) {
      const isOn = Number(button.value) === Number(element(button.dataset.range).value);
      button.setAttribute("aria-pressed", String(isOn));
    }
  }

  function showStep() {
    for (const img of all(".flip .prediction")) {
      const shown = img.dataset.step === step.value;
      img.hidden = !shown;
      if (shown) element("step-label").textContent = img.dataset.label;
    }
    step.setAttribute("aria-valuetext", element("step-label").textContent);
  }

  if (colors) {
    for (const slider of [blend, colors]) slider?.addEventListener("input", showMasks);
    for (const button of all("[data-range]")) {
      button.addEventListener("click", () => {
        element(button.dataset.range).value = button.value;
        showMasks();
      });
    }
    showMasks();
  }
  if (step) {
    step.addEventListener("input", showStep);
    showStep();
  }

  // Content that is wider than the window fades out at the clipped side, and a hint appears below it.
  for (const box of all(".scroll, .command code")) {
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = "↔ Scroll sideways to see all columns.";
    if (box.matches(".scroll")) box.after(hint);
    const update = () => {
      const rest = box.scrollWidth - box.clientWidth;
      box.classList.toggle("more-left", box.scrollLeft > 1);
      box.classList.toggle("more-right", box.scrollLeft < rest - 1);
      hint.hidden = rest <= 1;
    };
    box.addEventListener("scroll", update, { passive: true });
    new ResizeObserver(update).observe(box);
    update();
  }

  // Copies a command, or selects it if a local file may not use the clipboard.
  async function copy(button) {
    const code = button.parentElement.querySelector("code");
    let result = "Copied";
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      result = document.execCommand("copy") ? "Copied" : "Selected";
    }
    button.textContent = result;
    element("announcement").textContent = `${result}: ${code.textContent}`;
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }
  for (const button of all("button.copy")) button.addEventListener("click", () => copy(button));
})();
