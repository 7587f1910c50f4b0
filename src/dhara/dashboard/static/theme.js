// Before the first paint: the colours that were chosen here, if any were.
(() => {
  try {
    const theme = localStorage.getItem("dhara-theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage may be forbidden; then the system's choice holds.
  }
})();
