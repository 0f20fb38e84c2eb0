// Two pages have a script: the start page asks for the status, the clock hears events.
"use strict";

const panel = document.querySelector("[data-status]");
if (panel) {
  const refresh = async () => {
    if (document.hidden) return;
    let status = null;
    try {
      const response = await fetch(panel.dataset.status);
      if (response.ok) status = await response.json();
    } catch {
      // The server is away: the numbers are shown as stale until it is back.
    }
    panel.classList.toggle("stale", status === null);
    for (const place of panel.querySelectorAll("[data-value]")) {
      if (status) place.textContent = status[place.dataset.value];
    }
  };
  setInterval(refresh, 1000);
}

const clock = document.querySelector("[data-clock]");
if (clock) {
  const find = (selector) => clock.querySelector(selector);
  const say = (text) => (find("[data-state]").textContent = text);
  const turn = (hand, degrees) => find(hand).setAttribute("transform", `rotate(${degrees})`);
  let source = null;

  const show = ({ time, tick, listeners }) => {
    const now = new Date(time);
    const [hours, minutes, seconds] = [now.getHours(), now.getMinutes(), now.getSeconds()];
    const digits = [hours, minutes, seconds].map((n) => String(n).padStart(2, "0"));
    find("[data-time]").textContent = digits.join(":");
    find("[data-tick]").textContent = tick;
    find("[data-listeners]").textContent = listeners;
    turn(".hour", (hours % 12) * 30 + minutes / 2);
    turn(".minute", minutes * 6 + seconds / 10);
    turn(".second", seconds * 6);
  };
  const come = () => {
    source = new EventSource(clock.dataset.clock);
    source.addEventListener("open", () => say("Connected."));
    source.addEventListener("error", () => say("The connection is lost. Trying again."));
    source.addEventListener("tick", (event) => show(JSON.parse(event.data)));
    find("[data-toggle]").textContent = "Leave";
  };
  const leave = () => {
    source.close();
    source = null;
    find("[data-listeners]").textContent = "–";
    say("You left; the server knows.");
    find("[data-toggle]").textContent = "Come back";
  };
  find("[data-toggle]").addEventListener("click", () => (source ? leave() : come()));
  come();
}
