// Processes the messages of a queue. Arguments: API URL, queue. The key is in BALTO_API_KEY.
const [api, queue] = process.argv.slice(2);
const headers = { "content-type": "application/json" };
if (process.env.BALTO_API_KEY) headers.authorization = `Bearer ${process.env.BALTO_API_KEY}`;
const done = new Set(); // in a real worker: a table with the event ids
let stopping = false;
process.on("SIGTERM", () => (stopping = true));

async function call(action, body) {
  const answer = await fetch(`${api}/v1/queues/${queue}/${action}`, {
    method: "POST", headers, body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(`${action}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

async function handle(event) {
  if (done.has(event.id)) return; // delivered twice: the work is already done
  console.log("handled", event.id, event.type, JSON.stringify(event.data));
  done.add(event.id);
}

while (!stopping) {
  const { messages } = await call("receive", { max: 10, wait: "1s", worker: "node" });
  for (const { receipt, event } of messages) {
    try {
      await handle(event);
    } catch (error) {
      await call("nack", { receipts: [receipt], reason: String(error).slice(0, 120) });
      continue;
    }
    await call("ack", { receipts: [receipt] });
  }
}
