// Checks captured requests with the JavaScript verifiers of receivers. Input and output are those of judge.py.

import { createHmac, createPublicKey, timingSafeEqual, verify as verifySignature } from "node:crypto";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(new URL("../../target/judges/package.json", import.meta.url));
const { Webhook } = require("standardwebhooks");
const { Webhook: SvixWebhook } = require("svix");
const Stripe = require("stripe");
const { CloudEvent, HTTP } = require("cloudevents");
const { ROOT_CONTEXT, defaultTextMapGetter, trace } = require("@opentelemetry/api");
const { W3CTraceContextPropagator } = require("@opentelemetry/core");

const stripeWebhooks = new Stripe("sk_test_never_used").webhooks;

function check(good, why) {
  if (!good) throw new Error(why);
}

function readEvent(event) {
  event.validate();
  const { data, time, ...attributes } = event.toJSON();
  return { attributes, data };
}

const schemes = {
  standard({ headers, body, key }) {
    new Webhook(key).verify(body.toString(), headers);
  },

  svix({ headers, body, key }) {
    new SvixWebhook(key).verify(body.toString(), headers);
  },

  // A scheme of this test: HMAC-SHA512 in base64 over `v0:timestamp:body`, one per secret.
  custom({ headers, body, key }) {
    const mac = createHmac("sha512", key).update(`v0:${headers["webhook-timestamp"]}:`).update(body);
    const expected = Buffer.from(`v0=${mac.digest("base64")}`);
    const given = headers["x-acme-signature"].split(", ").map((one) => Buffer.from(one));
    check(given.some((one) => one.length === expected.length && timingSafeEqual(one, expected)), "the digests differ");
  },

  // Node's own crypto, because no Standard Webhooks library supports `v1a`.
  ed25519({ headers, body, key }) {
    const raw = Buffer.from(key.replace(/^whpk_/, ""), "base64");
    const publicKey = createPublicKey({
      key: { kty: "OKP", crv: "Ed25519", x: raw.toString("base64url") },
      format: "jwk",
    });
    const signed = Buffer.concat([Buffer.from(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.`), body]);
    const signatures = headers["webhook-signature"].split(" ").filter((part) => part.startsWith("v1a,"));
    check(signatures.length > 0, "no v1a signature");
    // During a rotation there are several.
    const good = (part) => verifySignature(null, signed, publicKey, Buffer.from(part.slice(4), "base64"));
    check(signatures.some(good), "a wrong signature");
  },

  stripe({ headers, body, key }) {
    stripeWebhooks.constructEvent(body, headers["stripe-signature"], key);
  },

  // The algorithm of GitHub's documentation ("Validating webhook deliveries").
  github({ headers, body, key }) {
    const expected = Buffer.from(`sha256=${createHmac("sha256", key).update(body).digest("hex")}`);
    const given = Buffer.from(headers["x-hub-signature-256"]);
    check(expected.length === given.length && timingSafeEqual(expected, given), "the digests differ");
  },

  cloudevent({ headers, body }) {
    return readEvent(HTTP.toEvent({ headers, body: body.toString() }));
  },

  "cloudevents-batch"({ headers, body }) {
    return HTTP.toEvent({ headers, body: body.toString() }).map(readEvent);
  },

  trace({ headers }) {
    const context = new W3CTraceContextPropagator().extract(ROOT_CONTEXT, headers, defaultTextMapGetter);
    const span = trace.getSpanContext(context);
    check(span, "no trace context");
    return { trace: span.traceId, span: span.spanId, flags: span.traceFlags };
  },

  // Makes the request of a publisher with this SDK, in the mode that `key` names.
  "make-cloudevent"({ body, key }) {
    const { attributes, data } = JSON.parse(body);
    const made = HTTP[key](new CloudEvent({ ...attributes, data }));
    return { headers: made.headers, body: Buffer.from(made.body).toString("base64") };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  const verify = schemes[request.scheme];
  check(verify, `the scheme ${request.scheme} is unknown`);
  let answer;
  try {
    answer = { accepted: true, read: verify({ ...request, body: Buffer.from(request.body, "base64") }) };
  } catch (refusal) {
    answer = { accepted: false, why: String(refusal) };
  }
  console.log(JSON.stringify(answer));
}
