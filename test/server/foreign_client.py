"""A gRPC client that shares no code with thaw: Debian's python3-grpcio (C-core), which makes its messages from the
server's reflection. Prints what it saw as one JSON object; foreign_clients.test.ts says what that must be.

    foreign_client.py ADDRESS CA MODEL [CERTIFICATE KEY] < token
"""

import json
import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

address, authorities, model, *own = sys.argv[1:]
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


def call(path, *requests, metadata=bearer, until=lambda reply: False):
    """The replies of one method, whatever its kind, up to one that is enough; requests are dictionaries of fields."""
    service, method = path.split("/")
    full = service if "." in service else f"thaw.v1.{service}"
    descriptor = pool.FindServiceByName(full).FindMethodByName(method)
    proto = next(
        m for f in files.values() for s in f.service if f"{f.package}.{s.name}" == full for m in s.method if m.name == method
    )
    kind = ("stream" if proto.client_streaming else "unary") + "_" + ("stream" if proto.server_streaming else "unary")
    Input, Output = message_class(descriptor.input_type.full_name), message_class(descriptor.output_type.full_name)
    stub = getattr(channel, kind)(
        f"/{full}/{method}", request_serializer=Input.SerializeToString, response_deserializer=Output.FromString
    )
    inputs = [Input(**fields) for fields in requests]
    reply = stub(iter(inputs) if proto.client_streaming else inputs[0], timeout=DEADLINE_SECONDS, metadata=metadata)
    if not proto.server_streaming:
        return [reply]
    replies = []
    for one in reply:
        replies.append(one)
        if until(one):
            reply.cancel()
            break
    return replies


def refusal(path, *requests, metadata=bearer):
    """The code, the message and the decoded google.rpc details of a call that fails."""
    try:
        call(path, *requests, metadata=metadata)
    except grpc.RpcError as error:
        told = {"code": error.code().name, "message": error.details(), "details": []}
        packed = dict(error.trailing_metadata()).get("grpc-status-details-bin")
        for detail in message_class("google.rpc.Status").FromString(packed or b"").details:
            name = detail.type_url.split("/")[-1]
            told["details"].append({"type": name, "text": str(message_class(name).FromString(detail.value))})
        return told
    return {"code": "OK"}


def upload(service, header, parts):
    """Uploads named parts, each a pair of its header and its bytes."""
    requests = [header]
    for part, data in parts:
        requests += [part, {"data": data}]
    return call(f"{service}/Upload{service.removesuffix('Service')}", *requests, {"end": {}})[0]


def reaches(state):
    return lambda reply: any(event.state.to == state for event in reply.events.events)


seen = {"services": services}
RUNNING, PAUSED = 3, 5
seen["health"] = call("grpc.health.v1.Health/Check", {}, metadata=[])[0].status
seen["version"] = call("SystemService/GetSystem", {})[0].version

# Models and data.
content = {name: read(f"{model}/{name}") for name in ("config.json", "model.safetensors")}
file_parts = [({"file": {"path": name, "size_bytes": len(data)}}, data) for name, data in content.items()]
seen["model"] = upload("ModelService", {"model": {"model_id": "python"}}, file_parts).model.name
files_back = {}
for reply in call("ModelService/DownloadModel", {"name": "models/python"}):
    if reply.HasField("file"):
        last = reply.file.path
        files_back[last] = b""
    else:
        files_back[last] += reply.data
seen["model_back"] = files_back == content
line = b'{"input_ids": [5, 9], "target_ids": [3]}\n'
splits = [({"split": {"name": name}}, line * 8) for name in ("train", "validation")]
seen["uploaded"] = upload("DatasetService", {"dataset": {"dataset_id": "python"}}, splits).dataset.name

# A run by itself.
spec = {"model": "models/python", "dataset": "datasets/python", "steps": 5}
started = call("RunService/StartRun", {"create": {"run_id": "python", "spec": spec}})
seen["started"] = started[0].created.run.name
events = [event for reply in started[1:] for event in reply.events.events]
seen["revisions"] = [event.revision for event in events]
seen["steps"] = [event.metrics.step for event in events if event.HasField("metrics")]
watched = call("RunService/WatchRun", {"name": "runs/python", "after_revision": events[0].revision})
seen["watched"] = [event.revision for reply in watched for event in reply.events.events]
seen["summary"] = call("RoutingService/SummarizeRouting", {"run": "runs/python"})[0].records

# A run that is driven.
plan = {"selection": {"preset": 4}}
call("RunService/CreateRun", {"run_id": "driven", "spec": spec, "start_paused": True})
call("RunService/WatchRun", {"name": "runs/driven"}, until=reaches(PAUSED))
seen["plan"] = call("GroupService/SetTrainable", {"name": "runs/driven", "plan": plan})[0].report.matched[0].name
batch = [{"input_ids": [5, 9], "target_ids": [3]}]
seen["loss"] = call("StepService/ForwardBackward", {"run": "runs/driven", "examples": batch})[0].loss
seen["step"] = call("StepService/OptimStep", {"run": "runs/driven"})[0].metrics.step
checkpoint = call("CheckpointService/SaveCheckpoint", {"run": "runs/driven"})[0].checkpoint.name
seen["checkpoint"] = [one.name for one in call("CheckpointService/ListCheckpoints", {"parent": "runs/driven"})[0].checkpoints]
seen["texts"] = [r.generation.text for r in call("ModelService/Generate", {"name": "runs/driven", "inputs": ["a", "b"]})]
seen["score"] = call("ModelService/Evaluate", {"name": "runs/driven"})[0].result.exact_match
subscribed = call("RoutingService/StreamAssignments", {"run": "runs/driven"}, until=lambda reply: True)
seen["subscribed"] = [reply.sequence for reply in subscribed]
seen["exported"] = call("CheckpointService/ExportModel", {"source": checkpoint, "model_id": "exported"})[0].model.name
pages, token = [], ""
while len(pages) < 5:
    page = call("ModelService/ListModels", {"page_size": 1, "page_token": token})[0]
    pages.append([one.name for one in page.models])
    token = page.next_page_token
    if not token:
        break
seen["pages"] = pages
call("RunService/CancelRun", {"name": "runs/driven"})
forked = {"source_checkpoint": checkpoint, "run_id": "forked", "spec": {"steps": 7}, "update_mask": {"paths": ["steps"]}}
call("RunService/ForkRun", forked)
call("RunService/WatchRun", {"name": "runs/forked"})
seen["forked"] = call("RunService/GetRun", {"name": "runs/forked"})[0].run.step

# A run that is steered; one waits behind it, and for another there is no room.
call("RunService/CreateRun", {"run_id": "steered", "spec": {**spec, "steps": 100_000}})
call("RunService/WatchRun", {"name": "runs/steered"}, until=reaches(RUNNING))
call("RunService/CreateRun", {"run_id": "waits", "spec": spec})
seen["full"] = refusal("RunService/CreateRun", {"run_id": "more", "spec": spec})
steered = call("RunService/SteerRun", {"watch": {"name": "runs/steered"}}, {"pause": {}}, {"cancel": {}})
answers = [reply.acknowledgement for reply in steered if reply.HasField("acknowledgement")]
seen["steered"] = [answer.WhichOneof("result") for answer in answers]
seen["state"] = call("RunService/GetRun", {"name": "runs/steered"})[0].run.state
seen["invalid"] = refusal("RunService/CreateRun", {"run_id": "-", "spec": {**spec, "steps": 0}})
seen["wrong_state"] = refusal("RunService/PauseRun", {"name": "runs/python"})
seen["stranger"] = refusal("RunService/ListRuns", {}, metadata=[])
seen["denied"] = refusal("DatasetService/DeleteDataset", {"name": "datasets/python"})
large = [{"dataset": {"dataset_id": "large"}}, splits[0][0], {"data": b"x" * (17 * 2**20)}]
seen["large"] = refusal("DatasetService/UploadDataset", *large)
print(json.dumps(seen))
