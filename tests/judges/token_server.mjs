// An OAuth 2.0 server (npm oidc-provider), and a receiver beside it that accepts only valid tokens of that server.
// Prints its port. `GET /log` lists token requests and deliveries; `POST /revoke` revokes all tokens.

import { createServer } from "node:http";
import { createRequire } from "node:module";

const require = createRequire(new URL("../../target/judges/package.json", import.meta.url));
const { default: Provider } = await import(require.resolve("oidc-provider"));

const [lifetime, method] = [Number(process.argv[2]), process.argv[3]];
const issued = [];
const log = { tokens: 0, accepted: 0, rejected: 0, scopes: [], organizations: [], headers: 0 };

const server = createServer();
server.listen(0, "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const client = {
    client_id: "the client: 1",
    token_endpoint_auth_method: method,
    client_secret: "a secret & more: +/%",
    grant_types: ["client_credentials"],
    redirect_uris: [],
    response_types: [],
    scope: "hooks",
  };
  const provider = new Provider(issuer, {
    clients: [client],
    scopes: ["hooks"],
    features: { clientCredentials: { enabled: true }, devInteractions: { enabled: false } },
    ttl: { ClientCredentials: lifetime },
  });
  provider.on("client_credentials.saved", (token) => {
    issued.push(token);
    log.tokens += 1;
    log.scopes.push(token.scope);
  });
  // The body as the provider has parsed it.
  provider.use(async (context, next) => {
    await next();
    if (context.oidc?.route === "token") log.organizations.push(context.oidc.body?.organization ?? null);
  });
  const oauth = provider.callback();
  server.on("request", async (request, response) => {
    const answer = (status, body) => response.writeHead(status).end(JSON.stringify(body));
    if (request.url === "/log") return answer(200, log);
    if (request.url === "/revoke") {
      await Promise.all(issued.map((token) => token.destroy()));
      return answer(200, {});
    }
    if (request.url === "/token" && request.headers.authorization) log.headers += 1;
    if (request.url !== "/hook") return oauth(request, response);
    const [scheme, value] = (request.headers.authorization ?? "").split(" ");
    const token = scheme === "Bearer" && (await provider.ClientCredentials.find(value));
    const good = Boolean(token) && token.isValid && token.scope === "hooks";
    log[good ? "accepted" : "rejected"] += 1;
    answer(good ? 200 : 401, {});
  });
  console.log(server.address().port);
});
