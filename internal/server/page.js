// Keeps the page as it is on the server, without taking anything out of the hands
// of who is using it. Without scripts the page is the same, and stands still.
"use strict";
const main = document.querySelector("main[data-live]");
if (main && window.EventSource) {
  let waiting = null;
  const busy = () => main.querySelector("details[open]") || (main.contains(document.activeElement) && document.activeElement.matches("input, select"));
  const renew = async () => {
    waiting = null;
    if (busy() || document.hidden) return later();
    const answer = await fetch(location.href, {headers: {Accept: "text/html"}});
    if (answer.redirected) return location.assign(answer.url);
    if (!answer.ok) return later();
    const next = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
    if (!next || busy()) return later();
    const at = document.activeElement && main.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    main.replaceChildren(...next.childNodes);
    if (at) main.querySelector(`a[href="${CSS.escape(at)}"]`)?.focus();
  };
  const later = () => { if (!waiting) waiting = setTimeout(() => renew().catch(later), 1000); };
  const events = new EventSource("/v1/events");
  events.addEventListener("open", later); // what happened before that was missed
  for (const kind of ["workload", "change", "progress", "history"]) events.addEventListener(kind, later);
}
