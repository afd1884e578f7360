(() => {
  const box = document.getElementById("find");
  if (!box) return;
  const input = box.querySelector("input"), told = box.querySelector("output");
  const more = document.getElementById("more");
  const rows = Array.from(document.querySelectorAll("details.sample"));
  const texts = rows.map((row) => row.textContent.toLowerCase());
  let tag = "";
  const look = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, i) => {
      const hit = (!tag || row.dataset.tag === tag) && words.every((word) => texts[i].includes(word));
      row.hidden = !hit;
      count += hit ? 1 : 0;
    });
    if (more && (words.length || tag)) more.open = true;
    told.textContent = count + " of " + rows.length + " samples";
  };
  input.addEventListener("input", look);
  box.querySelectorAll("button").forEach((button) => button.addEventListener("click", () => {
    tag = button.dataset.tag;
    box.querySelectorAll("button").forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
    look();
  }));
  box.hidden = false;
  look();
})();
