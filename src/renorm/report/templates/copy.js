"use strict";
(() => {
  const status = document.getElementById("copied");

  // where the clipboard is not for pages without https, the old way: copy what is selected
  const selectAndCopy = (code) => {
    const selection = getSelection();
    selection.selectAllChildren(code);
    const done = document.execCommand("copy");
    if (done) selection.removeAllRanges();
    return done;
  };

  const copy = async (code) => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      return true;
    } catch {
      return selectAndCopy(code);
    }
  };

  for (const button of document.querySelectorAll("[data-copies]")) {
    const label = button.firstChild;
    const before = label.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const done = await copy(document.getElementById(button.dataset.copies));
      label.textContent = done ? "Copied" : "Selected";
      status.textContent = done ? "The code is copied." : "The code is selected; copy it by hand.";
      setTimeout(() => {
        label.textContent = before;
        status.textContent = "";
      }, 2000);
    });
  }
})();
