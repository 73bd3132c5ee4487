"""A stock grpcio client with an identity in files: who am I, declare a task, complete it, and be denied what is too much.

usage: client.py ADDRESS SVID KEY BUNDLE DESCRIPTORS
"""
import secrets
import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def read(name):
    with open(name, "rb") as file:
        return file.read()


def main(address, svid, key, bundle, descriptors):
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(read(descriptors)).file:
        pool.Add(file)

    def message(name):
        descriptor = pool.FindMessageTypeByName("stint.v1." + name)
        if hasattr(message_factory, "GetMessageClass"):
            return message_factory.GetMessageClass(descriptor)
        return message_factory.MessageFactory(pool).GetPrototype(descriptor)

    def enum(name, number):
        return pool.FindEnumTypeByName("stint.v1." + name).values_by_number[number].name

    credentials = grpc.ssl_channel_credentials(read(bundle), read(key), read(svid))
    with grpc.secure_channel(address, credentials) as channel:

        def call(method, request, answer, **fields):
            stub = channel.unary_unary(
                "/stint.v1.TaskService/" + method,
                request_serializer=message(request).SerializeToString,
                response_deserializer=message(answer).FromString,
            )
            return stub(message(request)(**fields), timeout=20)

        me = call("WhoAmI", "WhoAmIRequest", "WhoAmIResponse")
        print(me.id, me.profile)
        declared = call(
            "DeclareTask", "DeclareTaskRequest", "DeclareTaskResponse",
            purpose="try-it", roles=[{"role": "web-client"}], request_id=secrets.token_urlsafe(16),
        ).task
        print(declared.purpose, enum("TaskState", declared.state), *[grant.role for grant in declared.grants])
        completed = call(
            "CompleteTask", "CompleteTaskRequest", "CompleteTaskResponse", name=declared.name, wait={"seconds": 20}
        ).task
        print(enum("TaskState", completed.state), enum("CloseReason", completed.close_reason))
        try:
            call(
                "DeclareTask", "DeclareTaskRequest", "DeclareTaskResponse",
                purpose="try-it", roles=[{"role": "payroll-db"}], request_id=secrets.token_urlsafe(16),
            )
        except grpc.RpcError as error:
            details = dict(error.trailing_metadata())["grpc-status-details-bin"]
            print(error.code().name, b"ROLE_OUTSIDE_PROFILE" in details)


main(*sys.argv[1:])
