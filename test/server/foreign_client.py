"""A gRPC client that shares no code with thaw: Debian's python3-grpcio (C-core), which makes its messages from the
server's reflection. Prints what it saw as one JSON object; foreign_clients.test.ts says what that must be.

    foreign_client.py ADDRESS CA [CERTIFICATE KEY] < token
"""

import json
import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

address, authorities, *own = sys.argv[1:]
token = sys.stdin.read().strip()


def read(path):
    with open(path, "rb") as file:
        return file.read()


certificate, key = (read(path) for path in own) if own else (None, None)
credentials = grpc.ssl_channel_credentials(read(authorities), key, certificate)
channel = grpc.secure_channel(address, credentials)
bearer = [("authorization", f"Bearer {token}")]
DEADLINE_SECONDS = 60

pool = descriptor_pool.DescriptorPool()


def message_class(name):
    descriptor = pool.FindMessageTypeByName(name)
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)


# Reflection's own messages, as far as they are needed: field numbers of grpc/reflection/v1/reflection.proto.
bootstrap = descriptor_pb2.FileDescriptorProto(name="bootstrap.proto", package="bootstrap", syntax="proto3")


def declare(name, *fields):
    message = bootstrap.message_type.add(name=name)
    for number, field, kind, repeated in fields:
        at = message.field.add(name=field, number=number, label=3 if repeated else 1)
        at.type = {"string": 9, "bytes": 12}.get(kind, 11)
        if at.type == 11:
            at.type_name = f".bootstrap.{kind}"


declare("Request", (3, "file_by_filename", "string", False), (4, "file_containing_symbol", "string", False), (7, "list_services", "string", False))
declare("Files", (1, "file_descriptor_proto", "bytes", True))
declare("Service", (1, "name", "string", False))
declare("Services", (1, "service", "Service", True))
declare("Response", (4, "files", "Files", False), (6, "services", "Services", False))
pool.Add(bootstrap)
Request, Response = message_class("bootstrap.Request"), message_class("bootstrap.Response")
reflect = channel.stream_stream(
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    request_serializer=Request.SerializeToString,
    response_deserializer=Response.FromString,
)


def ask(**query):
    return next(reflect(iter([Request(**query)]), timeout=DEADLINE_SECONDS))


services = [service.name for service in ask(list_services="*").services.service]
files = {}
for symbol in [*services, "google.rpc.Status", "google.rpc.BadRequest"]:
    for packed in ask(file_containing_symbol=symbol).files.file_descriptor_proto:
        file = descriptor_pb2.FileDescriptorProto.FromString(packed)
        files[file.name] = file


def add(name, seen=set()):
    if name in seen:
        return
    seen.add(name)
    for dependency in files[name].dependency:
        add(dependency)
    pool.Add(files[name])


for name in files:
    add(name)


def call(path, *requests, metadata=bearer):
    """The replies of one method, whatever its kind; requests are dictionaries of fields."""
    service, method = path.split("/")
    descriptor = pool.FindServiceByName(f"thaw.v1.{service}").FindMethodByName(method)
    proto = next(
        m for f in files.values() if f.package == "thaw.v1" for s in f.service if s.name == service for m in s.method if m.name == method
    )
    kind = ("stream" if proto.client_streaming else "unary") + "_" + ("stream" if proto.server_streaming else "unary")
    Input, Output = message_class(descriptor.input_type.full_name), message_class(descriptor.output_type.full_name)
    stub = getattr(channel, kind)(
        f"/thaw.v1.{service}/{method}", request_serializer=Input.SerializeToString, response_deserializer=Output.FromString
    )
    inputs = [Input(**fields) for fields in requests]
    reply = stub(iter(inputs) if proto.client_streaming else inputs[0], timeout=DEADLINE_SECONDS, metadata=metadata)
    return list(reply) if proto.server_streaming else [reply]


def refusal(path, *requests, metadata=bearer):
    """The code, the message and the decoded google.rpc details of a call that fails."""
    try:
        call(path, *requests, metadata=metadata)
    except grpc.RpcError as error:
        seen = {"code": error.code().name, "message": error.details(), "details": []}
        packed = dict(error.trailing_metadata()).get("grpc-status-details-bin")
        for detail in message_class("google.rpc.Status").FromString(packed or b"").details:
            name = detail.type_url.split("/")[-1]
            message = message_class(name).FromString(detail.value)
            seen["details"].append({"type": name, "text": str(message)})
        return seen
    return {"code": "OK"}


spec = {"model": "models/m", "dataset": "datasets/python", "steps": 5}
line = b'{"input_ids": [5, 9], "target_ids": [3]}\n'
upload = [{"dataset": {"dataset_id": "python"}}]
for split in ("train", "validation"):
    upload += [{"split": {"name": split}}, {"data": line * 8}]
upload.append({"end": {}})
seen = {"services": services}
seen["uploaded"] = call("DatasetService/UploadDataset", *upload)[0].dataset.name
started = call("RunService/StartRun", {"create": {"run_id": "python", "spec": spec}})
seen["started"] = started[0].created.run.name
events = [event for reply in started[1:] for event in reply.events.events]
seen["revisions"] = [event.revision for event in events]
seen["steps"] = [event.metrics.step for event in events if event.HasField("metrics")]
watched = call("RunService/WatchRun", {"name": "runs/python", "after_revision": events[0].revision})
seen["watched"] = [event.revision for reply in watched for event in reply.events.events]
call("RunService/CreateRun", {"run_id": "steered", "spec": {**spec, "steps": 100_000}})
steered = call("RunService/SteerRun", {"watch": {"name": "runs/steered"}}, {"pause": {}}, {"cancel": {}})
answers = [reply.acknowledgement for reply in steered if reply.HasField("acknowledgement")]
seen["steered"] = [answer.WhichOneof("result") for answer in answers]
seen["state"] = call("RunService/GetRun", {"name": "runs/steered"})[0].run.state
seen["invalid"] = refusal("RunService/CreateRun", {"run_id": "-", "spec": {**spec, "steps": 0}})
seen["stranger"] = refusal("RunService/ListRuns", {}, metadata=[])
seen["denied"] = refusal("DatasetService/DeleteDataset", {"name": "datasets/python"})
seen["large"] = refusal("DatasetService/UploadDataset", upload[0], upload[1], {"data": b"x" * (17 * 2**20)})
print(json.dumps(seen))
