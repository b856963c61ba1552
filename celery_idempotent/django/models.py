"""The tables: records, their steps and notes, the journal, and the outbox."""

from __future__ import annotations

from django.db import models

from celery_idempotent.stores.deciding import LONGEST


class Record(models.Model):
    """The record of one key. Only the store writes it; pages and queries may read it."""

    record_key = models.CharField("name", max_length=LONGEST, primary_key=True)
    task = models.CharField(max_length=255, blank=True, db_index=True)
    key = models.TextField("key", blank=True)
    state = models.CharField(max_length=16, db_index=True)
    owner_id = models.CharField("task id", max_length=255, blank=True, db_index=True)
    token = models.BigIntegerField()
    #: When it expires, in milliseconds since 1970.
    expires_ms = models.BigIntegerField(db_index=True)
    #: A new number with every write.
    stamp = models.BigIntegerField()
    #: The whole record, packed.
    record = models.BinaryField()

    class Meta:
        permissions = (
            ("forget_record", "Can forget an idempotency key"),
            ("resolve_record", "Can settle an unknown outcome"),
            ("resume_record", "Can run a call again"),
        )

    def __str__(self) -> str:
        return f"{self.task} {self.key}"


class Step(models.Model):
    """A step that a run has finished, packed."""

    record_key = models.CharField(max_length=LONGEST)
    step_key = models.CharField(max_length=LONGEST)
    name = models.TextField()
    step = models.BinaryField()

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("record_key", "step_key"), name="celery_idempotent_step_once"
            ),
        )

    def __str__(self) -> str:
        return self.name


class Note(models.Model):
    """The slip of an owner, packed: what it was answered, and whether its callbacks went out."""

    note_key = models.CharField(max_length=LONGEST, primary_key=True)
    expires_ms = models.BigIntegerField(db_index=True)
    slip = models.BinaryField(null=True)

    def __str__(self) -> str:
        return self.note_key


class Event(models.Model):
    """An event of the journal, packed."""

    id = models.BigAutoField(primary_key=True)
    journal = models.CharField(max_length=LONGEST)
    stored_ms = models.BigIntegerField()
    event = models.BinaryField()

    class Meta:
        indexes = (models.Index(fields=("journal", "id"), name="celery_idempotent_event_ix"),)

    def __str__(self) -> str:
        return f"{self.stored_ms}-{self.id}"


class Message(models.Model):
    """A call in the outbox, which is sent once its transaction has committed."""

    id = models.BigAutoField(primary_key=True)
    task_id = models.CharField(max_length=255, unique=True)
    task = models.CharField(max_length=255)
    message = models.TextField()
    #: Both by the database's clock.
    created = models.DateTimeField(editable=False)
    due = models.DateTimeField(db_index=True, editable=False)
    attempts = models.PositiveIntegerField(default=0)
    error = models.TextField(blank=True, default="")

    class Meta:
        verbose_name = "message in the outbox"
        verbose_name_plural = "messages in the outbox"

    def __str__(self) -> str:
        return f"{self.task} {self.task_id}"
