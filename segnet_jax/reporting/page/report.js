"use strict";
(() => {
  const page = document.documentElement;
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  const found = (id) => document.getElementById(id);
  page.classList.add("js");

  // The flip-book: one slider from image over truth to prediction, one over the evaluated steps.
  const blend = found("blend");
  const step = found("step");
  const names = ["image", "truth", "prediction"];

  function showBlend() {
    const value = Number(blend.value);
    for (const img of all(".flip .truth")) img.style.opacity = Math.min(Math.max(value, 0), 1);
    for (const img of all(".flip .prediction")) img.style.opacity = Math.min(Math.max(value - 1, 0), 1);
    const before = Math.floor(value);
    const share = Math.round(100 * (value - before));
    const told = share === 0 ? names[before] : `${names[before]}, ${share} percent towards ${names[before + 1]}`;
    blend.setAttribute("aria-valuetext", told);
    for (const button of all("[data-blend]")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.blend) === value));
    }
  }

  function showStep() {
    for (const img of all(".flip .prediction")) {
      const shown = img.dataset.step === step.value;
      img.hidden = !shown;
      if (shown) found("step-told").textContent = img.dataset.told;
    }
    step.setAttribute("aria-valuetext", found("step-told").textContent);
  }

  if (blend) {
    blend.addEventListener("input", showBlend);
    for (const button of all("[data-blend]")) {
      button.addEventListener("click", () => {
        blend.value = button.dataset.blend;
        showBlend();
      });
    }
    showBlend();
  }
  if (step) {
    step.addEventListener("input", showStep);
    showStep();
  }

  // Copying a command; where the clipboard is closed to a file, the text is selected instead.
  async function copy(button) {
    const code = button.parentElement.querySelector("code");
    let told = "Copied";
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      told = document.execCommand("copy") ? "Copied" : "Selected";
    }
    button.textContent = told;
    found("told").textContent = `${told}: ${code.textContent}`;
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }
  for (const button of all("button.copy")) button.addEventListener("click", () => copy(button));
})();
