"""The retraining pipeline's map. Pipeline nouns hold pure Python; Airflow words hold thin adapters.

config          a run's parameters, and the place it runs in
artifacts       the documents that a run leaves behind
exceptions      what may go wrong, as a tree
run_paths       where each document of a run lies
tables          the Parquet tables of a run
storage         the object store: what we need of S3
run_index       which runs there are, and which were assessed

dataset/        snapshot        a listing, as of a moment -> Snapshot; what changed between two
                arrivals        has something new arrived, and is the upload over
                sync            Snapshot -> local cache, every byte verified
                cache           the images' cache on a worker, by content
                transfer        one object's bytes, as the listing promised them
                decoding        image file -> RGB pixels, the same for checks, training and prediction
                resources       processors and memory that this process may use
                validation      which images may be used, and why the others may not
                inspection_cache  what validation learned of each content, kept between nights
                duplicates      near-duplicates -> groups; one lesion under two labels -> conflict
                fingerprints    what is kept of an image to find its near-duplicates
                similarity        how alike two images are, where they show the same place
                drift           do the new images look like the old ones
                splits          the sticky, group-safe split; class counts and weights
                run_tables      the tables of this run and the previous one that a split is made from
                check           all of this on a labelled folder, without Airflow or S3
                contact_sheets  the images behind a finding, side by side
                input_pipeline  images -> tf.data
                synthetic         synthetic images, for when there are none
training/       architectures   build_model(config)
                pretrained      the backbone's weights, without PyTorch
                devices         accelerators, precision, determinism: as they are
                checkpoints     where a training that is not done yet survives
                fit             fit -> TrainingRecord; resume
                finished        a training that an earlier attempt had done and could not report
                run_training    a run's documents in, history.csv, model.h5 and training.json out
evaluation/     predict         model + images -> probabilities
                model_file      what a model file may contain
                keras_import      import Keras without what it takes along for nothing
                metrics         probabilities -> metrics, with confidence intervals
                intervals       those in closed form, for where a bootstrap has nothing to vary
                evaluate        challenger and champion on the same images -> EvaluationDocument
                grad_cam        where a network looked
                folder          the images of a labelled folder that a model can fairly be evaluated on
                run_evaluation  a run's documents in, evaluation.json and its predictions out
promotion/      champion        the model in use, loaded if it may be
                gate            challenger, champion, thresholds -> GateDocument with reasons
                looks           how often a validation set has been decided on
                approval        the question that a person is asked
                registry        versions and the champion pointer
                smoke_test      the uploaded file, in a process of its own
                promote         upload, smoke test, pointer, in an order that no crash harms
                model_card      what a version is, for people
                run_upload      a run's documents in, a version in use out
report/         metrics         documents -> matplotlib metrics
                curves          ROC and precision-recall, with bands
                differences     how a metric is spelled, and which way it is better
                cases           missed cancers and false alarms
                galleries       the plots that show images
                plots           which plots a run has -> PNGs
                line_chart      small charts as SVG, where no PNG is drawn
                progress        how far a run is
                run_record      a run as its documents tell it
                run_history     the runs before this one, a line each
                page            documents -> one HTML page
                publish         plots and report.html into the run's folder
                trace           every place that holds an image, or something made from it

operators/ sensors/ triggers/ links/    Airflow adapters
metrics         our own few, by Airflow's StatsD or OpenTelemetry
notifications   on failure and on verdict, by Airflow's notifiers
web/            the FastAPI app behind the UI's tabs, and who may see it
cli             python -m bcc_ops check | evaluate | predict | models | trace
"""
