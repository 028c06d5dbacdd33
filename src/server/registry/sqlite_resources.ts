// Models, datasets and remembered answers in SQLite.

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { DatasetSchema } from "../../../proto/gen/thaw/v1/dataset_pb.ts";
import { DescribeDatasetResponseSchema } from "../../../proto/gen/thaw/v1/dataset_service_pb.ts";
import { ModelDescriptionSchema, ModelSchema } from "../../../proto/gen/thaw/v1/model_pb.ts";
import { type Answer, type DatasetRecord, type ModelRecord, NameTakenError, type Registry } from "./registry.ts";
import { type Blob, bytesOf, isUniqueViolation, type Sql } from "./sqlite.ts";
import { pageRows } from "./sqlite_runs.ts";

/** How long an answer is remembered: far longer than any client retries. */
const ANSWER_SECONDS = 7 * 24 * 3600;

const nowSeconds = (): number => Math.floor(Date.now() / 1000);

export function storeAnswer(sql: Sql, answer: Answer): void {
  const { requestId, method, digest, response } = answer;
  sql.run("DELETE FROM answers WHERE created < ?", nowSeconds() - ANSWER_SECONDS);
  sql.run("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", requestId, method, digest, response, nowSeconds());
}

interface ModelRow {
  position: number;
  directory: string;
  body: Blob;
  description: Blob;
}

interface DatasetRow {
  position: number;
  body: Blob;
  splits: Blob;
}

const modelOf = (row: ModelRow): ModelRecord => ({
  model: fromBinary(ModelSchema, bytesOf(row.body)),
  description: fromBinary(ModelDescriptionSchema, bytesOf(row.description)),
  directory: row.directory,
});

const datasetOf = (row: DatasetRow): DatasetRecord => ({
  dataset: fromBinary(DatasetSchema, bytesOf(row.body)),
  splits: fromBinary(DescribeDatasetResponseSchema, bytesOf(row.splits)).splits,
});

type ResourceOperations = Pick<
  Registry,
  | "createModel"
  | "model"
  | "models"
  | "deleteModel"
  | "createDataset"
  | "dataset"
  | "datasets"
  | "deleteDataset"
  | "answer"
  | "saveAnswer"
>;

export function resourceOperations(sql: Sql): ResourceOperations {
  /** An insert under a name, with the answer to the request that asked for it. */
  const createNamed = (name: string, answer: Answer | undefined, insert: () => void): void =>
    sql.transaction(() => {
      try {
        insert();
      } catch (error) {
        throw isUniqueViolation(error) ? new NameTakenError(name) : error;
      }
      if (answer) storeAnswer(sql, answer);
    });
  const deleteNamed = (table: "models" | "datasets", id: string, answer: Answer | undefined): void =>
    sql.transaction(() => {
      sql.run(`DELETE FROM ${table} WHERE id = ?`, id);
      if (answer) storeAnswer(sql, answer);
    });

  return {
    async createModel({ model, description, directory }, answer) {
      createNamed(model.name, answer, () => {
        sql.run(
          "INSERT INTO models (id, directory, body, description) VALUES (?, ?, ?, ?)",
          model.name.replace(/^models\//, ""),
          directory,
          toBinary(ModelSchema, model),
          toBinary(ModelDescriptionSchema, description),
        );
      });
    },
    async model(id) {
      const row = sql.get<ModelRow>("SELECT * FROM models WHERE id = ?", id);
      return row && modelOf(row);
    },
    models: async (page) =>
      pageRows<ModelRow>(sql, "SELECT * FROM models", "position", [], page).map((row) => ({
        position: row.position,
        item: modelOf(row),
      })),
    deleteModel: async (id, answer) => deleteNamed("models", id, answer),

    async createDataset({ dataset, splits }, answer) {
      const description = create(DescribeDatasetResponseSchema, { splits: [...splits] });
      createNamed(dataset.name, answer, () => {
        sql.run(
          "INSERT INTO datasets (id, body, splits) VALUES (?, ?, ?)",
          dataset.name.replace(/^datasets\//, ""),
          toBinary(DatasetSchema, dataset),
          toBinary(DescribeDatasetResponseSchema, description),
        );
      });
    },
    async dataset(id) {
      const row = sql.get<DatasetRow>("SELECT * FROM datasets WHERE id = ?", id);
      return row && datasetOf(row);
    },
    datasets: async (page) =>
      pageRows<DatasetRow>(sql, "SELECT * FROM datasets", "position", [], page).map((row) => ({
        position: row.position,
        item: datasetOf(row),
      })),
    deleteDataset: async (id, answer) => deleteNamed("datasets", id, answer),

    async answer(requestId) {
      const row = sql.get<{ method: string; digest: string; response: Blob }>(
        "SELECT * FROM answers WHERE request_id = ?",
        requestId,
      );
      return row && { requestId, method: row.method, digest: row.digest, response: bytesOf(row.response) };
    },
    saveAnswer: async (answer) => sql.transaction(() => storeAnswer(sql, answer)),
  };
}
