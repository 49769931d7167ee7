// A slider over frames: its place says which picture, line and number stand in the page.
document.addEventListener("DOMContentLoaded", () => {
  for (const player of document.querySelectorAll(".player")) {
    const frames = JSON.parse(player.dataset.frames), input = player.querySelector("input");
    player.querySelector("label").hidden = false;
    input.addEventListener("input", () => {
      const { value, line, picture, alt } = frames[input.value];
      player.querySelector("output").textContent = value;
      player.querySelector(".line").innerHTML = line;
      Object.assign(player.querySelector("img"), { src: picture, alt });
      input.setAttribute("aria-valuetext", value);
    });
  }
});
