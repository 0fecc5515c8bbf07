"""Every error a user can meet, in one tree, each with an exit code of its own.

A message must stand alone in a log, because under a pipeline runner the last line of a traceback is all a person
sees: the subject and its value, what is wrong, what was expected beside what was found, then one next step.

    StreamwayError                     1
    ├── SettingsError                  2   a configuration or a parameter is wrong
    ├── HubError                      10   Hugging Face cannot give what was asked
    │   ├── ModelNotFoundError        11
    │   ├── RevisionNotFoundError     12
    │   ├── AccessDeniedError         13   gated, private, or a token that is missing or revoked
    │   └── PolicyError               14   licence, remote code or scan status forbid it
    ├── TransferError                 20   bytes could not be moved
    │   ├── ChecksumError             21   the bytes are not the ones that were promised
    │   ├── SourceChangedError        22   the source changed while it was read
    │   └── StalledError              23   no byte arrived for longer than allowed
    ├── WeightsError                  30   a checkpoint cannot be used
    │   ├── NoWeightsError            31
    │   ├── UnsafePickleError         32   the pickle asks for something beyond the allow-list
    │   ├── CheckpointError           33   a torch checkpoint is malformed or unsupported
    │   └── SafetensorsError          34   a safetensors file or set is malformed
    ├── StorageError                  40   a bucket or folder refuses
    │   ├── BucketNotFoundError       41
    │   ├── StorageAccessError        42
    │   ├── ReleaseError              43   a published release disagrees with its manifest
    │   ├── GateError                 44   a release has not passed what it must have passed
    │   └── InUseError                45   something still serves from what should be taken away
    ├── CacheError                    50   Anywhere Cache refuses
    ├── ClusterError                  60   the cluster refuses
    │   ├── ClusterUnreachableError   61
    │   ├── ApplyConflictError        62   another manager owns what we would write
    │   ├── RolloutError              63   the new revision will not become ready; carries the reason
    │   ├── ClusterPermissionError    64   RBAC or an admission webhook said no
    │   ├── ApiServerError            65   the API server refused for another reason; carries its status
    │   └── KitRefusedError           66   an engine's cache is not what may become a warm-start kit
    ├── SmokeTestError                70   the endpoint could not be asked
    │   └── WrongAnswerError          71   the endpoint answered, and wrongly
    ├── LaunchError                   80   a pipeline could not be compiled, submitted or scheduled
    │   ├── ServiceUnreachableError   81   the service that runs pipelines did not answer
    │   └── AlreadyThereError         82   a run or schedule of that name exists
    └── SandboxError                  90   a part of the sandbox cannot start
"""

from typing import Any


class StreamwayError(Exception):
    """Base of everything a caller may want to catch.

    Args:
        problem: The subject with its value and what is wrong, expected beside found.
        next_step: One thing the reader can do now, as an imperative sentence.
    """

    exit_code = 1

    def __init__(self, problem: str, *, next_step: str = "") -> None:
        self.problem = problem
        self.next_step = next_step
        super().__init__(problem)

    def __str__(self) -> str:
        return f"{self.problem}\nNext: {self.next_step}" if self.next_step else self.problem

    def add_outcome(self, outcome: str) -> None:
        """Say what was done about it, such as which revision was returned to."""
        # Below what quotes a log, so that it is not taken for its last line.
        between = "\n" if "\n" in self.problem else " " if self.problem.endswith(".") else ". "
        self.problem = f"{self.problem}{between}{outcome}"


class SettingsError(StreamwayError):
    exit_code = 2


class HubError(StreamwayError):
    exit_code = 10


class ModelNotFoundError(HubError):
    exit_code = 11


class RevisionNotFoundError(HubError):
    exit_code = 12


class AccessDeniedError(HubError):
    exit_code = 13


class PolicyError(HubError):
    exit_code = 14


class TransferError(StreamwayError):
    exit_code = 20


class ChecksumError(TransferError):
    exit_code = 21


class SourceChangedError(TransferError):
    exit_code = 22


class StalledError(TransferError):
    exit_code = 23


class WeightsError(StreamwayError):
    exit_code = 30


class NoWeightsError(WeightsError):
    exit_code = 31


class UnsafePickleError(WeightsError):
    exit_code = 32


class CheckpointError(WeightsError):
    exit_code = 33


class SafetensorsError(WeightsError):
    exit_code = 34


class StorageError(StreamwayError):
    exit_code = 40


class BucketNotFoundError(StorageError):
    exit_code = 41


class StorageAccessError(StorageError):
    exit_code = 42


class ReleaseError(StorageError):
    exit_code = 43


class GateError(StorageError):
    exit_code = 44


class InUseError(StorageError):
    exit_code = 45


class CacheError(StreamwayError):
    exit_code = 50


class ClusterError(StreamwayError):
    exit_code = 60


class ClusterUnreachableError(ClusterError):
    exit_code = 61


class ApplyConflictError(ClusterError):
    exit_code = 62


class RolloutError(ClusterError):
    """A revision that will not become ready.

    Args:
        problem: As in StreamwayError.
        next_step: As in StreamwayError.
        reason: One word for programs, such as `unschedulable` or `crash_loop`.
    """

    exit_code = 63

    def __init__(self, problem: str, *, next_step: str = "", reason: str = "") -> None:
        super().__init__(problem, next_step=next_step)
        self.reason = reason


class ClusterPermissionError(ClusterError):
    exit_code = 64


class KitRefusedError(ClusterError):
    exit_code = 66


class ApiServerError(ClusterError):
    """A refusal in the API server's own words.

    Args:
        problem: As in StreamwayError.
        next_step: As in StreamwayError.
        status: HTTP status.
        reason: Kubernetes' word for it, such as NotFound or Conflict.
        causes: The causes that the Status object lists, each with `field`, `message` and `reason`.
    """

    exit_code = 65

    def __init__(
        self,
        problem: str,
        *,
        next_step: str = "",
        status: int = 0,
        reason: str = "",
        causes: tuple[dict[str, str], ...] = (),
    ) -> None:
        super().__init__(problem, next_step=next_step)
        self.status = status
        self.reason = reason
        self.causes = causes


class SmokeTestError(StreamwayError):
    exit_code = 70


class WrongAnswerError(SmokeTestError):
    """The endpoint answered, and wrongly.

    Args:
        problem: As in StreamwayError.
        next_step: As in StreamwayError.
        report: The smoke test's report, for callers that keep it.
    """

    exit_code = 71

    def __init__(self, problem: str, *, next_step: str = "", report: Any = None) -> None:
        super().__init__(problem, next_step=next_step)
        self.report = report


class LaunchError(StreamwayError):
    exit_code = 80


class ServiceUnreachableError(LaunchError):
    exit_code = 81


class AlreadyThereError(LaunchError):
    exit_code = 82


class SandboxError(StreamwayError):
    exit_code = 90
