//! `subject.enc`: a compact JWE (`alg` dir, `enc` A256GCM) over `ichd.subject/1`, opened here and nowhere before. The
//! keys are the site's JWK Set (or one `k` of it), entered in the setup form; they stay on this station.

/** What the site lets a station know of the patient; whatever else is in it is not shown. */
export interface Subject {
  location?: string;
  name?: string;
  name_ideographic?: string;
  patient_id?: string;
  birth_date?: string;
  accession_number?: string;
  /** PNG of the key slice, base 64. */
  picture?: string;
}

const FIELDS = ["name", "name_ideographic", "patient_id", "birth_date", "accession_number", "picture"] as const;
/** Some 160 pixels square. */
const PICTURE_CHARS_MAX = 400_000;

interface Key {
  kid?: string;
  k: string;
}

function bytes(base64url: string): Uint8Array<ArrayBuffer> {
  const text = atob(base64url.replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(text, (c) => c.charCodeAt(0));
}

const isKey = (key: Key): boolean =>
  typeof key?.k === "string" && /^[A-Za-z0-9_-]{43}=?$/.test(key.k) && bytes(key.k).length === 32;

/** The keys in what was entered: a JWK Set, or the 32 bytes of one key in base64url. Empty if it is neither. */
export function keysOf(text: string): Key[] {
  try {
    const keys: Key[] = text.trimStart().startsWith("{") ? JSON.parse(text).keys : [{ k: text.trim() }];
    return keys.length > 0 && keys.every(isKey) ? keys : [];
  } catch {
    return [];
  }
}

/** Opens a JWE; nothing if no key fits, a bit was changed, or it was sealed for another study. */
export async function open(jwe: string, keys: Key[], studyRef: string | undefined): Promise<Subject | undefined> {
  const [header, cek, iv, ciphertext, tag, ...more] = jwe.split(".");
  if (!header || cek !== "" || !iv || ciphertext === undefined || !tag || more.length > 0) return undefined;
  try {
    const { alg, enc, zip, crit, kid } = JSON.parse(new TextDecoder().decode(bytes(header)));
    if (alg !== "dir" || enc !== "A256GCM" || zip !== undefined || crit !== undefined) return undefined;
    const params = { name: "AES-GCM", iv: bytes(iv), additionalData: new TextEncoder().encode(header) };
    if (params.iv.length !== 12 || bytes(tag).length !== 16) return undefined;
    const sealed = new Uint8Array([...bytes(ciphertext), ...bytes(tag)]);
    for (const key of keys.filter((key) => !kid || !key.kid || key.kid === kid)) {
      const secret = await crypto.subtle.importKey("raw", bytes(key.k), "AES-GCM", false, ["decrypt"]);
      const plain = await crypto.subtle.decrypt(params, secret, sealed).catch(() => undefined);
      if (plain) return read(new TextDecoder().decode(plain), studyRef);
    }
  } catch {
    // No JWE.
  }
  return undefined;
}

function read(text: string, studyRef: string | undefined): Subject | undefined {
  const value = JSON.parse(text);
  if (value?.schema !== "ichd.subject/1" || value.study_ref !== studyRef) return undefined;
  const shown = FIELDS.filter((f) => typeof value[f] === "string" && value[f].length <= PICTURE_CHARS_MAX);
  return Object.fromEntries(shown.map((f) => [f, value[f]]));
}
