// Texts arrive as they were sent. protobuf-es decodes with a TextDecoder that takes a byte order mark at the beginning of a
// text for one of a file and drops it: another name, another input of a model. Imported wherever messages are decoded that
// somebody else has encoded; it holds for the whole process.

import { configureTextEncoding, getTextEncoding } from "@bufbuild/protobuf/wire";

const lenient = new TextDecoder("utf-8", { ignoreBOM: true });
const strict = new TextDecoder("utf-8", { ignoreBOM: true, fatal: true });

configureTextEncoding({
  ...getTextEncoding(),
  decodeUtf8: (bytes, valid) => (valid ? strict : lenient).decode(bytes),
});
