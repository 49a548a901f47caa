"""The retraining pipeline's map. Pipeline nouns hold pure Python; Airflow words hold thin adapters.

config          a run's knobs, and the place it runs in
artifacts       the documents that a run leaves behind
exceptions      what may go wrong, as a tree
run_paths       where each document of a run lies
tables          the Parquet tables of a run
storage         the object store: what we need of S3
run_index       which runs there are, and which were assessed

dataset/        snapshot        a listing, as of a moment -> Snapshot; what changed between two
                sync            Snapshot -> local cache, every byte verified
                validation      which images may be used, and why the others may not
                duplicates      near copies -> groups; one lesion under two labels -> conflict
                drift           do the new images look like the old ones
                splits          the sticky, group-safe split; class counts and weights
                input_pipeline  images -> tf.data
                made_up         made-up images, for when there are none
training/       architectures   build_model(config)
                pretrained      the backbone's weights, without PyTorch
                fit             fit -> TrainingRecord; checkpoints, resume
evaluation/     predict         model + images -> probabilities
                metrics         probabilities -> figures, with confidence intervals
                lean_keras      Keras without what it imports for others
                evaluate        challenger and champion on the same images -> EvaluationDocument
                folder          a labelled folder -> the images to evaluate any model on
                run_evaluation  a run's documents -> what evaluate needs, and back
promotion/      gate            challenger, champion, thresholds -> GateDocument with reasons
                looks           how often a validation set has been decided on
                approval        the question that a person is asked
                registry        versions and the champion pointer
                champion        the model in use, loaded if it may be
                promote         upload, smoke test, pointer: in an order that a crash does not harm
                run_upload      a run's documents -> the version that promote uploads
                smoke_test      the uploaded file, in a process of its own
                model_card      what a version is, for people
report/         figures         documents -> matplotlib figures
                page            documents -> one HTML page

operators/ sensors/ triggers/ links/    Airflow adapters
web/            the FastAPI app behind the UI's tabs, and who may see it
cli             python -m bcc_ops check | evaluate | predict | models
"""
