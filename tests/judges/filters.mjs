// Applies MongoDB queries to documents with sift. Each line is {"query", "documents"}; the answer is one digit per document.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(new URL("../../target/judges/package.json", import.meta.url));
const sift = require("sift").default;

for await (const line of createInterface({ input: process.stdin })) {
  const { query, documents } = JSON.parse(line);
  const matches = sift(query);
  console.log(documents.map((document) => (matches(document) ? "1" : "0")).join(""));
}
