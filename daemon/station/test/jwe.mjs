//! The other side of `subject.ts`: seals as RFC 7516 says (dir, A256GCM), with Node's own cryptography.

import { createCipheriv, randomBytes } from "node:crypto";

export function sealed(subject, key) {
  const header = Buffer.from(JSON.stringify({ alg: "dir", enc: "A256GCM" })).toString("base64url");
  const iv = randomBytes(12);
  const cipher = createCipheriv("aes-256-gcm", Buffer.from(key, "base64url"), iv).setAAD(Buffer.from(header));
  const text = Buffer.concat([cipher.update(JSON.stringify(subject)), cipher.final()]);
  return [header, "", iv.toString("base64url"), text.toString("base64url"), cipher.getAuthTag().toString("base64url")].join(".");
}
