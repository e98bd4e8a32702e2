// An AMQP client that was not written here: amqplib. Reads one JSON command a line, prints one JSON answer a line.
//
// Usage: amqp.mjs PORT
//
// {"op": "publish", "exchange", "messages": [{"key", "body", "properties"}]} publishes messages, and answers when the broker has
// confirmed all of them. {"op": "consume", "queue", "count"} consumes that many messages, and acknowledges each.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(new URL("../../target/judges/package.json", import.meta.url));
const amqp = require("amqplib");

async function publish(connection, { exchange, messages }) {
  const channel = await connection.createConfirmChannel();
  const returned = [];
  const failed = new Promise((_, reject) => channel.on("error", reject));
  channel.on("return", (message) => returned.push(message.fields.routingKey));
  for (const { key, body, properties } of messages) {
    channel.publish(exchange, key, Buffer.from(body), { persistent: true, mandatory: true, ...properties });
  }
  await Promise.race([channel.waitForConfirms(), failed]);
  await channel.close();
  if (returned.length > 0) throw new Error(`unroutable: ${returned}`);
  return messages.length;
}

async function consume(connection, { queue, count }) {
  const channel = await connection.createChannel();
  await channel.prefetch(50);
  const messages = [];
  let tag;
  await new Promise((resolve, reject) => {
    const take = (message) => {
      if (message === null) return reject(new Error("the broker cancelled the consumer"));
      if (messages.length === count) return; // goes back to the queue with the channel
      const { fields, properties, content } = message;
      messages.push({ key: fields.routingKey, exchange: fields.exchange, body: content.toString(), ...properties });
      channel.ack(message);
      if (messages.length === count) resolve();
    };
    setTimeout(() => reject(new Error(`${messages.length} of ${count} messages within 30 s`)), 30_000).unref();
    channel.on("error", reject);
    channel.consume(queue, take).then((consumer) => (tag = consumer.consumerTag), reject);
  });
  await channel.cancel(tag);
  await channel.close();
  return messages;
}

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  try {
    const connection = await amqp.connect(`amqp://127.0.0.1:${process.argv[2]}`);
    // The failure of a command has its reason.
    connection.on("error", () => {});
    try {
      const answer = await { publish, consume }[command.op](connection, command);
      console.log(JSON.stringify({ ok: answer }));
    } finally {
      await connection.close().catch(() => {});
    }
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }));
  }
}
