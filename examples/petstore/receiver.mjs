// Receives webhooks: verifies each one, and handles each event once. Arguments: secret, port.
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const [secret, port] = process.argv.slice(2);
const key = Buffer.from(secret.replace(/^whsec_/, ""), "base64");
const seen = new Set(); // in a real receiver: a table, written in the transaction of the work

function isGenuine(headers, body) {
  const { "webhook-id": id, "webhook-timestamp": time, "webhook-signature": given = "" } = headers;
  if (!(Math.abs(Date.now() / 1000 - Number(time)) <= 300)) return false;
  const mac = createHmac("sha256", key).update(`${id}.${time}.`).update(body).digest("base64");
  const expected = Buffer.from(`v1,${mac}`);
  return given.split(" ").map((part) => Buffer.from(part))
    .some((part) => part.length === expected.length && timingSafeEqual(part, expected));
}

function handle(event) {
  console.log("received", event.type, JSON.stringify(event.data));
}

createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks);
  if (!isGenuine(request.headers, body)) return response.writeHead(401).end();
  const id = request.headers["webhook-id"]; // the same on every attempt
  if (!seen.has(id)) {
    try {
      handle(JSON.parse(body));
    } catch {
      return response.writeHead(500).end(); // Balto tries again
    }
    seen.add(id);
  }
  response.writeHead(204).end();
}).listen(Number(port), "127.0.0.1", () => console.log("listening"));
