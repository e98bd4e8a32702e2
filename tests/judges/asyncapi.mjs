// Validates the AsyncAPI document on standard input with the official parser.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(new URL("../../target/judges/package.json", import.meta.url));
const { Parser } = require("@asyncapi/parser");

const { document, diagnostics } = await new Parser().parse(readFileSync(0, "utf8"));
const errors = diagnostics.filter((found) => found.severity === 0);
for (const error of errors) console.log(error.path.join("/"), error.message);
if (!document || errors.length > 0) process.exit(1);
console.log(document.operations().length, "operations");
