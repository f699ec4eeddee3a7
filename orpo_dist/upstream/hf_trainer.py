"""transformers' Trainer with its private steps under public names, which subclasses override.

Here alone a private method of Trainer is overridden or called: ``_save`` calls ``save_weights``,
which calls Trainer's ``_save``, and a subclass overrides ``save_weights``. A method that Trainer
calls otherwise one day fails the check at start, and does not bring back what it was overridden
for.
"""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from orpo_dist.upstream.register import reaches_for

IN = "transformers/trainer.py (5.23)"
T = "transformers.trainer:Trainer."


class OpenTrainer(Trainer):
    """Trainer, whose checkpoints, resuming and steps can be overridden by public names.

    Subclasses call ``check("hf_trainer")`` before anything else.
    """

    # --- beginning and going on

    @reaches_for(
        f"{T}_prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)",
        because="an engine reads only its own files, for its own number of processes",
        upstream=IN,
        until="checkpoints of Trainer are read by every engine",
    )
    def _prepare_for_training(
        self, max_steps: Any, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        return self.prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def prepare_for_training(
        self, max_steps: Any, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        """Model, optimizer and schedule on their engine, from a checkpoint if there is one."""
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    @reaches_for(
        f"{T}_init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, "
        "resume_from_checkpoint, trial)",
        because="a run that goes on has the checkpoint's intervals and the best model's old folder",
        upstream=IN,
        until="both are looked for anew on resuming",
    )
    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        return self.begin_state(*args, **kwargs)

    def begin_state(self, *args: Any, **kwargs: Any) -> Any:
        """The state to begin or to go on with."""
        return super()._init_training_state(*args, **kwargs)

    @reaches_for(
        f"{T}_run_epoch(model, epoch, train_dataloader, steps_in_epoch, "
        "num_update_steps_per_epoch, trial, ignore_keys_for_eval, start_time, "
        "resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch)",
        because="a run that goes on after its last step makes one too many",
        upstream=IN,
        until="Trainer looks at should_training_stop before the first step",
    )
    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self.run_epoch(*args, **kwargs)

    def run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """One pass over the data."""
        super()._run_epoch(*args, **kwargs)

    @reaches_for(
        f"{T}_load_from_checkpoint(resume_from_checkpoint, model)",
        because="weights come with the optimizer's state, as precise as it updates them",
        upstream=IN,
        until="checkpoints of Trainer are read by every engine",
    )
    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        self.load_weights(resume_from_checkpoint, model)

    def load_weights(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        """The weights of a checkpoint."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    @reaches_for(
        f"{T}_load_optimizer_and_scheduler(checkpoint)",
        because="its files are cut by the number of processes, and the settings in them win over "
        "those of the run",
        upstream=IN,
        until="checkpoints of Trainer are read by every engine",
    )
    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        self.load_optimizer(checkpoint)

    def load_optimizer(self, checkpoint: Any) -> None:
        """Optimizer and schedule of a checkpoint."""
        super()._load_optimizer_and_scheduler(checkpoint)

    @reaches_for(
        f"{T}_load_scaler(checkpoint)",
        because="the scale of an fp16 loss comes with the optimizer's state, on every engine",
        upstream=IN,
        until="checkpoints of Trainer are read by every engine",
    )
    def _load_scaler(self, checkpoint: Any) -> None:
        self.load_scaler(checkpoint)

    def load_scaler(self, checkpoint: Any) -> None:
        """The scale of the loss of a checkpoint."""
        super()._load_scaler(checkpoint)

    @reaches_for(
        f"{T}_load_rng_state(checkpoint)",
        because="there is a file for every process of the run before, and none for others",
        upstream=IN,
        until="Trainer draws anew on another number of processes",
    )
    def _load_rng_state(self, checkpoint: Any) -> None:
        self.load_random_state(checkpoint)

    def load_random_state(self, checkpoint: Any) -> None:
        """The sources of random numbers of a checkpoint."""
        super()._load_rng_state(checkpoint)

    @reaches_for(
        f"{T}_load_callback_state()",
        because="callbacks go on with what they knew, and with the settings of this run",
        upstream=IN,
        until="restore_callback_states_from_checkpoint leaves settings alone",
    )
    def _load_callback_state(self) -> None:
        self.load_callback_state()

    def load_callback_state(self) -> None:
        """What callbacks knew."""
        super()._load_callback_state()

    # --- steps

    @reaches_for(
        f"{T}_get_grad_norm(model, grad_norm)",
        because="it is the last moment before the optimizer's step, in which a gradient that is "
        "no number can be met",
        upstream=IN,
        until="a callback can skip the step (on_pre_optimizer_step)",
    )
    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return self.gradient_norm(model, grad_norm)

    def gradient_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm of the step's gradient; the last thing before the optimizer's step."""
        return super()._get_grad_norm(model, grad_norm)

    @reaches_for(
        f"{T}_maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, epoch, "
        "ignore_keys_for_eval, start_time, learning_rate)",
        because="a checkpoint that has come to the disk is put in its place before the next one "
        "is thought of",
        upstream=IN,
        until="callbacks may save (on_step_end comes before it, also where it raises)",
    )
    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.after_step(*args, **kwargs)

    def after_step(self, *args: Any, **kwargs: Any) -> None:
        """Logs, evaluates and saves where it is time."""
        super()._maybe_log_save_evaluate(*args, **kwargs)

    # --- checkpoints

    @reaches_for(
        f"{T}_get_output_dir(trial)",
        because="a checkpoint is written beside its place, and moved when it is whole",
        upstream=IN,
        until="Trainer writes a checkpoint so itself",
    )
    def _get_output_dir(self, trial: Any) -> str:
        return self.checkpoints_folder(trial)

    def checkpoints_folder(self, trial: Any) -> str:
        """Where checkpoints are written."""
        return super()._get_output_dir(trial)

    @reaches_for(
        f"{T}_save_checkpoint(model, trial)",
        because="a run that is killed while it saves leaves half a checkpoint, from which it "
        "would go on",
        upstream=IN,
        until="Trainer writes a checkpoint beside its place and moves it",
    )
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.save_checkpoint(model, trial)

    def save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint of everything."""
        super()._save_checkpoint(model, trial)

    @reaches_for(
        f"{T}_save(output_dir, state_dict)",
        because="the files have to be whole, without pickled settings, and with what adapters need",
        upstream=IN,
        until="save_model can be given what is written",
    )
    def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
        self.save_weights(output_dir, state_dict)

    def save_weights(self, output_dir: Any = None, state_dict: Any = None) -> None:
        """Writes the weights, rank 0."""
        super()._save(output_dir, state_dict)

    @reaches_for(
        f"{T}_save_optimizer_and_scheduler(output_dir)",
        because="its files are cut by the number of processes",
        upstream=IN,
        until="checkpoints of Trainer are read by every engine",
    )
    def _save_optimizer_and_scheduler(self, output_dir: Any) -> None:
        self.save_optimizer(output_dir)

    def save_optimizer(self, output_dir: Any) -> None:
        """Writes optimizer and schedule."""
        super()._save_optimizer_and_scheduler(output_dir)

    @reaches_for(
        f"{T}_save_scaler(output_dir)",
        because="the scale of an fp16 loss is among the optimizer's state",
        upstream=IN,
        until="checkpoints of Trainer are read by every engine",
    )
    def _save_scaler(self, output_dir: Any) -> None:
        self.save_scaler(output_dir)

    def save_scaler(self, output_dir: Any) -> None:
        """Writes the scale of the loss."""
        super()._save_scaler(output_dir)

    @reaches_for(
        f"{T}_push_from_checkpoint(checkpoint_folder)",
        because="Trainer pushes before a checkpoint is in its place",
        upstream=IN,
        until="Trainer writes a checkpoint beside its place and moves it",
    )
    def _push_from_checkpoint(self, checkpoint_folder: Any) -> None:
        self.push_checkpoint(checkpoint_folder)

    def push_checkpoint(self, checkpoint_folder: Any) -> None:
        """Sends a checkpoint to the hub."""
        super()._push_from_checkpoint(checkpoint_folder)

    @reaches_for(
        f"{T}_load_best_model()",
        because="the best model may be damaged, and lies in the form that every engine reads",
        upstream=IN,
        until="checkpoints of Trainer are read by every engine",
    )
    def _load_best_model(self) -> None:
        self.load_best_model()

    def load_best_model(self) -> None:
        """The best checkpoint's weights into the model."""
        super()._load_best_model()

    @reaches_for(
        f"{T}_finalize_training(trial, num_train_samples, start_time)",
        because="with save_total_limit 1 it deletes the newest checkpoint, from which a stopped "
        "run goes on",
        upstream=IN,
        until="the newest checkpoint is kept beside the best",
    )
    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: Any) -> Any:
        return self.finish(trial, num_train_samples, start_time)

    def finish(self, trial: Any, num_train_samples: Any, start_time: Any) -> Any:
        """What is left to do after the last step."""
        return super()._finalize_training(trial, num_train_samples, start_time)
