// Filters of the scoreboard: by part, by status and by text. Without JavaScript everything is shown.
document.addEventListener("DOMContentLoaded", () => {
  const board = document.querySelector("table.glocal-board");
  if (!board) return;
  const part = document.getElementById("glocal-part");
  const status = document.getElementById("glocal-status");
  const words = document.getElementById("glocal-words");
  const count = document.getElementById("glocal-count");

  function apply() {
    let papers = 0;
    let claims = 0;
    board.querySelectorAll("tbody").forEach((body) => {
      const inPart = !part.value || body.dataset.part === part.value;
      const inText = body.textContent.toLowerCase().includes(words.value.trim().toLowerCase());
      let shown = 0;
      body.querySelectorAll("tr[data-status]").forEach((row) => {
        const visible = !status.value || row.dataset.status === status.value;
        row.hidden = !visible;
        shown += visible;
      });
      const matches = !status.value || shown > 0 || body.dataset.state === status.value;
      body.hidden = !(inPart && inText && matches);
      if (!body.hidden) {
        papers += 1;
        claims += shown;
      }
    });
    count.textContent = `${papers} papers and ${claims} claims shown`;
  }

  [part, status].forEach((control) => control.addEventListener("change", apply));
  words.addEventListener("input", apply);
  document.querySelector(".glocal-filters").hidden = false;
  apply();
});
