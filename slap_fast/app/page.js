// Players and pictures of all results: one listener each for the whole page, since results come and go.
(() => {
  const soundOf = (node) => (node instanceof Element ? node.closest(".sound") : null);

  document.addEventListener("play", (event) => {
    for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
  }, true);

  document.addEventListener("timeupdate", (event) => {
    const sound = soundOf(event.target);
    if (!sound || !event.target.duration) return;
    const cursor = sound.querySelector(".cursor");
    cursor.style.display = "block";
    cursor.style.left = `${(100 * event.target.currentTime) / event.target.duration}%`;
  }, true);

  document.addEventListener("click", (event) => {
    const picture = event.target.closest?.(".sound .picture");
    if (!picture) return;
    const audio = soundOf(picture).querySelector("audio");
    const box = picture.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    const start = () => { audio.currentTime = share * audio.duration; audio.play(); };
    if (audio.readyState > 0) start();
    else { audio.addEventListener("loadedmetadata", start, { once: true }); audio.load(); audio.preload = "auto"; }
  });

  // A recording may have vanished: the server answers with a sentence, which takes the place of the picture.
  document.addEventListener("error", async (event) => {
    const sound = soundOf(event.target);
    if (!sound || sound.querySelector(".problem")) return;
    const problem = document.createElement("p");
    problem.className = "problem";
    const picture = event.target.tagName === "IMG" && event.target.closest(".picture");
    if (picture) picture.classList.add("failed");
    (picture || sound).append(problem);
    const answer = await fetch(event.target.src).catch(() => null);
    problem.textContent = answer && !answer.ok ? await answer.text() : "This sound cannot be loaded; is slap-fast app still running?";
  }, true);

  // Browsers go on loading pictures that left the page, and the new ones would wait for them.
  const drop = (node) => {
    if (!(node instanceof Element)) return;
    for (const part of [node, ...node.querySelectorAll("source, img")])
      if (part.matches("source, img") && !part.isConnected) { part.removeAttribute("srcset"); part.removeAttribute("src"); }
  };
  new MutationObserver((changes) => changes.forEach((change) => change.removedNodes.forEach(drop)))
    .observe(document, { childList: true, subtree: true });
})();
