"""Dependencies and path parameters of the endpoints."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from fastapi import Depends, Header, Path, Request

from stabilizer.collector.api.access import ACTOR_HEADER, parse_actor
from stabilizer.collector.api.metrics import Metrics
from stabilizer.collector.api.sweeper import Sweeper
from stabilizer.collector.services.container import Services


def get_services(request: Request) -> Services:
    """Return the services of this app."""
    services: Services = request.app.state.services
    return services


def get_metrics(request: Request) -> Metrics:
    """Return the metrics of this app."""
    metrics: Metrics = request.app.state.metrics
    return metrics


def get_sweeper(request: Request) -> Sweeper:
    """Return the sweeper of this app."""
    sweeper: Sweeper = request.app.state.sweeper
    return sweeper


def get_actor(
    actor: Annotated[
        str | None,
        Header(
            alias=ACTOR_HEADER,
            description="Name of the user for the audit log; `api` by default.",
        ),
    ] = None,
) -> str:
    """Return the user who sent the request, as `person:<name>`."""
    return parse_actor(actor)


ServicesDep: TypeAlias = Annotated[Services, Depends(get_services)]
MetricsDep: TypeAlias = Annotated[Metrics, Depends(get_metrics)]
SweeperDep: TypeAlias = Annotated[Sweeper, Depends(get_sweeper)]
Actor: TypeAlias = Annotated[str, Depends(get_actor)]

RunId: TypeAlias = Annotated[str, Path(max_length=64, description="Id of a run.")]
CommandId: TypeAlias = Annotated[str, Path(max_length=64, description="Id of a command.")]
IncidentId: TypeAlias = Annotated[str, Path(max_length=64, description="Id of an incident.")]
SilenceId: TypeAlias = Annotated[str, Path(max_length=64, description="Id of a silence.")]
