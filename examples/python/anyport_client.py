#!/usr/bin/env python3
"""A client of Anyport's config service that knows of it what server reflection tells.

Needs grpcio and protobuf (Debian: python3-grpcio, python3-protobuf). It shows what
every program that writes should do: set deadlines, name each write by a request id
and repeat it under the same one, read all pages, and tell each fault by its field.

    anyport_client.py list app
    anyport_client.py apply resources.json       # an ApplyRequest, in proto JSON
    anyport_client.py delete app minecraft
    anyport_client.py history
    anyport_client.py watch
"""

import argparse
import os
import sys
import uuid

import grpc
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
    text_format,
)

DEADLINE = 10  # seconds, of a call that has one answer
ATTEMPTS = 3
PAGE = 100

# The part of grpc.reflection.v1 that is used here.
REFLECTION = """
name: "reflection" package: "grpc.reflection.v1" syntax: "proto3"
message_type {
  name: "ServerReflectionRequest"
  oneof_decl { name: "message_request" }
  field { name: "file_by_filename" number: 3 type: TYPE_STRING oneof_index: 0 }
  field { name: "file_containing_symbol" number: 4 type: TYPE_STRING oneof_index: 0 }
}
message_type {
  name: "FileDescriptorResponse"
  field { name: "file_descriptor_proto" number: 1 type: TYPE_BYTES label: LABEL_REPEATED }
}
message_type {
  name: "ErrorResponse"
  field { name: "error_message" number: 2 type: TYPE_STRING }
}
message_type {
  name: "ServerReflectionResponse"
  field {
    name: "file_descriptor_response" number: 4 type: TYPE_MESSAGE
    type_name: ".grpc.reflection.v1.FileDescriptorResponse"
  }
  field {
    name: "error_response" number: 7 type: TYPE_MESSAGE
    type_name: ".grpc.reflection.v1.ErrorResponse"
  }
}
"""


def message_class(pool, name):
    """The class of a message that the pool knows."""
    descriptor = pool.FindMessageTypeByName(name)
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)


class Reflection:
    """Types of a server, asked for when they are first needed."""

    def __init__(self, channel):
        known = descriptor_pool.DescriptorPool()
        known.Add(text_format.Parse(REFLECTION, descriptor_pb2.FileDescriptorProto()))
        self._request = message_class(known, "grpc.reflection.v1.ServerReflectionRequest")
        answer = message_class(known, "grpc.reflection.v1.ServerReflectionResponse")
        self._ask = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=self._request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        self._pool = descriptor_pool.DescriptorPool()
        self._files = set()

    def load(self, symbol):
        """Learns what a service or message is, and all that it consists of."""
        self._fetch(file_containing_symbol=symbol)

    def message(self, name):
        return message_class(self._pool, name)

    def service(self, name):
        self.load(name)
        return self._pool.FindServiceByName(name)

    def _fetch(self, **wanted):
        request = self._request(**wanted)
        for answer in self._ask(iter([request]), timeout=DEADLINE):
            if answer.HasField("error_response"):
                raise LookupError(answer.error_response.error_message)
            for encoded in answer.file_descriptor_response.file_descriptor_proto:
                self._add(descriptor_pb2.FileDescriptorProto.FromString(encoded))

    def _add(self, file):
        if file.name in self._files:
            return
        self._files.add(file.name)
        for dependency in file.dependency:
            if dependency not in self._files:
                self._fetch(file_by_filename=dependency)
        self._pool.Add(file)


class Service:
    """A service of the server; its methods by name."""

    def __init__(self, channel, reflection, name):
        self._channel = channel
        self._reflection = reflection
        self._descriptor = reflection.service(name)

    def request(self, method, **fields):
        """A message that the method takes."""
        wanted = self._descriptor.methods_by_name[method].input_type
        return self._reflection.message(wanted.full_name)(**fields)

    def call(self, method, request):
        """The answer. A write has a request id, so it is done once, however often it is sent."""
        call = self._method(self._channel.unary_unary, method)
        for attempt in range(ATTEMPTS):
            try:
                return call(request, timeout=DEADLINE)
            except grpc.RpcError as error:
                unknown = error.code() in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                )
                if not unknown or attempt + 1 == ATTEMPTS:
                    raise

    def stream(self, method, request):
        """Answers without end."""
        return self._method(self._channel.unary_stream, method)(request)

    def pages(self, method, items, **fields):
        """What a list holds, over all its pages."""
        request = self.request(method, page_size=PAGE, **fields)
        while True:
            answer = self.call(method, request)
            yield from getattr(answer, items)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    def _method(self, kind, method):
        descriptor = self._descriptor.methods_by_name[method]
        answer = self._reflection.message(descriptor.output_type.full_name)
        return kind(
            f"/{self._descriptor.full_name}/{method}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=answer.FromString,
        )


def faults(error, reflection):
    """What google.rpc says about an error: (field, what is wrong with it)."""
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    if not details:
        return
    for name in ("google.rpc.Status", "google.rpc.BadRequest"):
        reflection.load(name)
    for detail in reflection.message("google.rpc.Status").FromString(details).details:
        if detail.type_url.endswith("/google.rpc.BadRequest"):
            bad = reflection.message("google.rpc.BadRequest").FromString(detail.value)
            for violation in bad.field_violations:
                yield violation.field, violation.description


def show(message):
    print(json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None))


def name_of(resource):
    """`app/minecraft`, of a Resource."""
    kind = resource.WhichOneof("kind")
    declared = getattr(resource, kind)
    return f"{kind}/{declared.cidr if kind == 'prefix' else declared.name}"


def kind_number(kind):
    return f"KIND_{kind.upper()}"


def run(config, arguments):
    request_id = str(uuid.uuid4())
    if arguments.command == "list":
        kind = kind_number(arguments.kind)
        for resource in config.pages("List", "resources", kind=kind):
            show(resource)
    elif arguments.command == "history":
        for revision in config.pages("History", "revisions"):
            show(revision)
    elif arguments.command == "apply":
        request = config.request("Apply")
        with open(arguments.file, encoding="utf-8") as file:
            json_format.Parse(file.read(), request)
        request.request_id = request_id
        answer = config.call("Apply", request)
        for change in answer.changes:
            action = change.DESCRIPTOR.enum_types_by_name["Action"].values_by_number
            word = action[change.action].name.removeprefix("ACTION_").lower()
            print(f"{change.resource.name}: {word}")
        print(f"revision {answer.revision}")
    elif arguments.command == "delete":
        resource = {"kind": kind_number(arguments.kind), "name": arguments.name}
        request = config.request("Delete", resource=resource, request_id=request_id)
        print(f"revision {config.call('Delete', request).revision}")
    elif arguments.command == "watch":
        for answer in config.stream("Watch", config.request("Watch")):
            print(f"revision {answer.revision}")
            for resource in answer.upserts:
                print(f"+ {name_of(resource)}")
            for reference in answer.removals:
                print(f"- {reference.name}")
            sys.stdout.flush()


TLS = {
    "ca": "authority that the server's certificate must come from, PEM",
    "cert": "certificate of this program, PEM; its role says what it may: viewer reads, "
    "operator writes, too",
    "key": "private key of --tls-cert, PEM",
}


def channel_to(arguments, parser):
    paths = [getattr(arguments, f"tls_{name}") for name in ("ca", "key", "cert")]
    if not any(paths):
        return grpc.insecure_channel(arguments.server)
    if not all(paths):
        parser.error("give all of --tls-cert, --tls-key and --tls-ca, or none")
    contents = []
    for path in paths:
        with open(path, "rb") as file:
            contents.append(file.read())
    return grpc.secure_channel(arguments.server, grpc.ssl_channel_credentials(*contents))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--server",
        default="127.0.0.1:7400",
        metavar="HOST:PORT",
        help="the config service (default: %(default)s)",
    )
    tls = parser.add_argument_group(
        "TLS", "All three where the fleet is in TLS; each also as ANYPORT_TLS_CERT and so on."
    )
    for name, what in TLS.items():
        default = os.environ.get(f"ANYPORT_TLS_{name.upper()}")
        tls.add_argument(f"--tls-{name}", metavar="FILE", default=default, help=what)
    commands = parser.add_subparsers(dest="command", required=True)
    kinds = ["prefix", "monitor", "pool", "certificate", "app"]
    commands.add_parser("list").add_argument("kind", choices=kinds)
    commands.add_parser("apply").add_argument("file")
    delete = commands.add_parser("delete")
    delete.add_argument("kind", choices=kinds)
    delete.add_argument("name")
    commands.add_parser("history")
    commands.add_parser("watch")
    arguments = parser.parse_args()

    with channel_to(arguments, parser) as channel:
        reflection = Reflection(channel)
        try:
            run(Service(channel, reflection, "anyport.v1.ConfigService"), arguments)
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            for field, problem in faults(error, reflection):
                print(f"  {field}: {problem}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
