(() => {
  const root = document.documentElement;
  const followTheme = () => {
    let theme = null;
    try { theme = localStorage.getItem("theme"); } catch { /* storage refused: the system's preference holds */ }
    if (theme === "dark" || theme === "light") root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  if (location.protocol.startsWith("http")) {
    followTheme();
    addEventListener("storage", followTheme);
  }
  /* The UI's frame may not navigate its parent: hand addresses of the UI to the UI's own router instead. */
  addEventListener("click", (event) => {
    const link = event.target.closest("a[data-ui]");
    if (!link || parent === window || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    parent.history.pushState(null, "", link.href);
    parent.dispatchEvent(new PopStateEvent("popstate", { state: null }));
  });
})();
