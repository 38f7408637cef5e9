"""What endpoints are given: the services, the name of the person, metrics, who waits."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from fastapi import Depends, Header, Path, Request

from stabilizer.collector.api.access import ACTOR_HEADER, parse_actor
from stabilizer.collector.api.event_streams import EventStreams
from stabilizer.collector.api.long_poll import LongPolls
from stabilizer.collector.api.metrics import Metrics
from stabilizer.collector.api.sweeper import Sweeper
from stabilizer.collector.services.container import Services


def get_services(request: Request) -> Services:
    """Give the services that the app was started with."""
    services: Services = request.app.state.services
    return services


def get_metrics(request: Request) -> Metrics:
    """Give the metrics of this app."""
    metrics: Metrics = request.app.state.metrics
    return metrics


def get_long_polls(request: Request) -> LongPolls:
    """Give the requests that wait now."""
    polls: LongPolls = request.app.state.long_polls
    return polls


def get_event_streams(request: Request) -> EventStreams:
    """Give the streams that are open now."""
    streams: EventStreams = request.app.state.event_streams
    return streams


def get_sweeper(request: Request) -> Sweeper:
    """Give the sweeper of this app."""
    sweeper: Sweeper = request.app.state.sweeper
    return sweeper


def get_actor(
    actor: Annotated[
        str | None,
        Header(
            alias=ACTOR_HEADER,
            description="Name of the person, for the audit log; `api` if there is none.",
        ),
    ] = None,
) -> str:
    """Name the person who asks, as `person:<name>`."""
    return parse_actor(actor)


ServicesDep: TypeAlias = Annotated[Services, Depends(get_services)]
MetricsDep: TypeAlias = Annotated[Metrics, Depends(get_metrics)]
LongPollsDep: TypeAlias = Annotated[LongPolls, Depends(get_long_polls)]
EventStreamsDep: TypeAlias = Annotated[EventStreams, Depends(get_event_streams)]
SweeperDep: TypeAlias = Annotated[Sweeper, Depends(get_sweeper)]
Actor: TypeAlias = Annotated[str, Depends(get_actor)]

RunId: TypeAlias = Annotated[str, Path(max_length=64, description="Id of a run.")]
CommandId: TypeAlias = Annotated[str, Path(max_length=64, description="Id of a command.")]
IncidentId: TypeAlias = Annotated[str, Path(max_length=64, description="Id of an incident.")]
SilenceId: TypeAlias = Annotated[str, Path(max_length=64, description="Id of a silence.")]
