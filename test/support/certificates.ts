// X.509 certificates for tests, made on the spot: an authority and what it signs, with the dates a test needs. Written out
// in DER (ITU-T X.690) after RFC 5280 section 4.1, because Node signs but makes no certificates and no other program has
// to be installed for the tests.

import { Buffer } from "node:buffer";
import { createPrivateKey, generateKeyPairSync, type KeyObject, randomBytes, sign } from "node:crypto";

export interface Issued {
  /** PEM. */
  readonly certificate: string;
  /** PEM, PKCS #8. */
  readonly key: string;
}

const DAY_MS = 86_400_000;
const ECDSA_WITH_SHA256 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]; // 1.2.840.10045.4.3.2
const COMMON_NAME = [0x55, 0x04, 0x03]; // 2.5.4.3
const SUBJECT_ALT_NAME = [0x55, 0x1d, 0x11]; // 2.5.29.17
const BASIC_CONSTRAINTS = [0x55, 0x1d, 0x13]; // 2.5.29.19

function der(tag: number, ...parts: (Uint8Array | readonly number[])[]): Buffer {
  const body = Buffer.concat(parts.map((part) => Uint8Array.from(part)));
  if (body.length < 128) return Buffer.concat([Uint8Array.of(tag, body.length), body]);
  if (body.length < 256) return Buffer.concat([Uint8Array.of(tag, 0x81, body.length), body]);
  return Buffer.concat([Uint8Array.of(tag, 0x82, body.length >> 8, body.length & 255), body]);
}

const sequence = (...parts: (Uint8Array | readonly number[])[]): Buffer => der(0x30, ...parts);
const objectId = (bytes: readonly number[]): Buffer => der(0x06, bytes);
const name = (common: string): Buffer =>
  sequence(der(0x31, sequence(objectId(COMMON_NAME), der(0x0c, Buffer.from(common)))));
// UTCTime: YYMMDDHHMMSSZ, the form for dates before 2050
const time = (at: number): Buffer =>
  der(0x17, Buffer.from(`${new Date(at).toISOString().replace(/\D/g, "").slice(2, 14)}Z`));
const extension = (id: readonly number[], value: Buffer): Buffer => sequence(objectId(id), der(0x04, value));

export interface Authority extends Issued {
  /** A certificate for `localhost` and 127.0.0.1, valid from a day ago until `validDays` from now (negative: expired). */
  issue(common: string, validDays?: number): Issued;
}

/** A new authority that nobody else trusts. */
export function authority(common: string): Authority {
  const own = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const pem = (key: KeyObject): string => key.export({ type: "pkcs8", format: "pem" }) as string;
  const certify = (subject: string, publicKey: KeyObject, extensions: Buffer, validDays: number): string => {
    const algorithm = sequence(objectId(ECDSA_WITH_SHA256));
    const now = Date.now();
    const signed = sequence(
      der(0xa0, der(0x02, [2])), // version 3
      der(0x02, [1, ...randomBytes(15)]),
      algorithm,
      name(common),
      sequence(time(now - 365 * DAY_MS), time(now + validDays * DAY_MS)),
      name(subject),
      publicKey.export({ type: "spki", format: "der" }),
      der(0xa3, sequence(extensions)),
    );
    const signature = sign("sha256", signed, createPrivateKey(pem(own.privateKey)));
    const whole = sequence(signed, algorithm, der(0x03, [0], signature)).toString("base64");
    return `-----BEGIN CERTIFICATE-----\n${whole.replace(/.{64}/g, "$&\n").trimEnd()}\n-----END CERTIFICATE-----\n`;
  };
  const isAuthority = extension(BASIC_CONSTRAINTS, sequence(der(0x01, [0xff])));
  return {
    certificate: certify(common, own.publicKey, isAuthority, 365),
    key: pem(own.privateKey),
    issue(subject, validDays = 365) {
      const pair = generateKeyPairSync("ec", { namedCurve: "P-256" });
      const names = sequence(der(0x82, Buffer.from("localhost")), der(0x87, [127, 0, 0, 1]));
      const certificate = certify(subject, pair.publicKey, extension(SUBJECT_ALT_NAME, names), validDays);
      return { certificate, key: pem(pair.privateKey) };
    },
  };
}
