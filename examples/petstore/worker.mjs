// Sends a mail for each adoption. Arguments: API URL, queue, mailbox (a directory).
import { writeFile } from "node:fs/promises";
import { join } from "node:path";

const [api, queue, mailbox] = process.argv.slice(2);
const headers = { "content-type": "application/json" };
if (process.env.BALTO_API_KEY) headers.authorization = `Bearer ${process.env.BALTO_API_KEY}`;

async function call(action, body) {
  const answer = await fetch(`${api}/v1/queues/${queue}/${action}`, {
    method: "POST", headers, body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(`${action}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

// A message may come twice: after a crash, a lost answer, a lease that ran out. The file of the
// event says that its mail was sent.
async function sendMail({ id, data }) {
  try {
    await writeFile(join(mailbox, id), `Dear ${data.adopter}, ${data.petId} is yours.\n`, { flag: "wx" });
    return "sent";
  } catch (error) {
    if (error.code === "EEXIST") return "duplicate";
    throw error;
  }
}

for (;;) {
  const { messages } = await call("receive", { max: 1, wait: "20s", worker: "node" });
  for (const { receipt, event } of messages) {
    try {
      console.log(await sendMail(event), event.id);
      if (process.env.HANG) await new Promise((resolve) => setTimeout(resolve, 60_000));
      await call("ack", { receipts: [receipt] });
    } catch (error) {
      await call("nack", { receipts: [receipt], reason: String(error).slice(0, 120) });
    }
  }
}
