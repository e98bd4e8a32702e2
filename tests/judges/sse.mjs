// Follows streams of events with the npm package `eventsource`, an implementation of WHATWG's EventSource.
//
// Standard input: {"readers": [{"url", "reset"}]}. Each reader ends with the event of type `all.last`. After a 410 it
// begins again at `oldest`: with `after` in its URL, or by a reset of its consumer. Prints one line per reader.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(new URL("../../target/judges/package.json", import.meta.url));
const { EventSource } = require("eventsource");

function follow({ url, reset }) {
  const read = { events: [], gone: [], controls: {}, opened: 0 };
  return new Promise((resolve, reject) => {
    const open = (url) => {
      let refusal;
      const source = new EventSource(url, {
        fetch: async (input, init) => {
          const response = await fetch(input, init);
          if (response.status !== 200) refusal = await response.clone().json();
          return response;
        },
      });
      source.onopen = () => (read.opened += 1);
      for (const name of ["caughtup", "gone", "end"]) {
        source.addEventListener(`balto.${name}`, () => (read.controls[name] = (read.controls[name] ?? 0) + 1));
      }
      source.onmessage = ({ data, lastEventId }) => {
        const event = JSON.parse(data);
        read.events.push({ id: lastEventId, event });
        if (event.type === "all.last") {
          source.close();
          resolve(read);
        }
      };
      source.onerror = async ({ code, message }) => {
        if (code === undefined) return; // the source connects again by itself
        if (code !== 410 || source.readyState !== EventSource.CLOSED) {
          return reject(new Error(`${url}: ${code} ${message} ${JSON.stringify(refusal)}`));
        }
        read.gone.push({ events: read.events.length, code: refusal.code, oldest: refusal.oldest });
        if (!reset) {
          const next = new URL(url);
          next.searchParams.set("after", refusal.oldest);
          return open(next.href);
        }
        const body = JSON.stringify({ to: refusal.oldest });
        await fetch(reset, { method: "POST", body, headers: { "content-type": "application/json" } });
        open(url);
      };
    };
    open(url);
  });
}

const { readers } = JSON.parse(readFileSync(0, "utf8"));
for (const read of await Promise.all(readers.map(follow))) console.log(JSON.stringify(read));
