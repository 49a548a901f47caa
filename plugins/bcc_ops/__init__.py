"""The retraining pipeline's map. Pipeline nouns contain pure Python, Airflow words contain thin adapters.

config          the parameters of one run, and the settings of the deployment
instances       the models of a deployment: one, or several from its file
exceptions      what may go wrong, as a tree
installation    one release of the package, and an Airflow that it knows
airflow_names   what Airflow has in different places, from one place

runs/           documents          the JSON documents of a run, and the references by which tasks hand them on
                upgrade            read what an older release wrote
                paths              where each document of a run is stored
                object_store       the bucket: what the pipeline needs of S3
                rows               the rows of a run's tables
                tables             these tables, as Parquet
                index              which runs there are, and which were assessed
                previous           what the last assessed run left behind: its split, its contents
                epochs             the history of a fold's training, one row per epoch
                record             a run as its documents tell it
                bundle             a copy of the documents in one object, for the pages
                history            the runs before this one, one line each
dataset/        snapshot           a listing as of a moment -> the images of a run; what changed between two
                arrivals           has something new arrived, and is the upload over
                external           the external test sets: what is there, before anything is trained
                sync               snapshot -> local cache, every byte verified
                image_cache        the images on a worker, by content
                object_download    the bytes of one object, as the listing promised them
                resources          processors and memory that this process may use
                file_parts         segments and chunks of an image file, counted before it is opened
                dicom_elements     the elements of a DICOM file, walked over before anything interprets them
                dicom              a DICOM file -> the PNG that is kept of it: pixels, and the tags of an allow-list
                dicom_pixels       the pixels of a DICOM file -> 8-bit gray or RGB, as they are to be shown
                decoding           image file -> RGB pixels, the same for checks, training and prediction
                image_checks       which images may be used, and why the others may not
                inspection_cache   what the checks learned of each content, kept between nights
                inspection_slices  which new images are inspected by a task of their own, beside others
                inspection_shards  that, as Parquet for the bucket: rows -> bytes, and back without trust
                shared_inspections a worker fetches what others learned, and adds what it learned
                feature_search     images that have local features in common, found anew or from the last search on
                metadata_table     metadata.csv or .parquet -> rows of cells, bounded
                metadata           rows -> what is known of each image, without what identifies a patient
                metadata_source    the table of a snapshot or of a folder, and what is odd in it
                pseudonyms         patients' identifiers -> salted digests
                image_content      look for text and marks in an image, once per content
                content_findings   what was found, and what a run does about it
                text_reader        read what is burned into an image, if RapidOCR is there
                burned_in_text     what a line of text is about: armpit, side, device, perhaps a name
                marks              calipers, Doppler colour, two views, letters cut off, blanks
                near_duplicates    near-duplicates -> groups; one lesion under two labels -> conflict
                properties         what an image file tells without its content: size, border, colour, compression
                shortcuts          how well these alone predict the class
                fingerprints       what is kept of an image to find its near-duplicates
                similarity         how alike two images are that show the same view
                drift              do the new images look like the old ones
                splits             the sticky, group-safe split into folds; class counts and weights
                folder_check       all of this on a labelled folder, without Airflow or S3
                contact_sheets     the images behind a finding, side by side
                input_pipeline     images -> tf.data
                synthetic          synthetic images, for a first look without real ones
models/         model_file         what a model file may contain
                keras_import       import Keras without what it loads needlessly
                classifier         model file + images -> probabilities
                probabilities      what training and evaluation both compute from probabilities
                combination        several model files -> one
                registry           versions, the champion pointer and the anchor
                champion           the champion and the anchor, loaded if they may be
training/       architectures      the networks
                pretrained         the backbone's weights, without PyTorch
                devices            accelerators, precision, determinism: as they are
                checkpoints        where an unfinished training survives
                fit                epochs -> TrainingRecord; resume
                completed          a training that an earlier attempt finished and could not report
                run_training       documents of a run in, the contents of a fold's files out
                job_folder         the folder of a training that runs as a process: what goes in, what comes out
                entry              python -m bcc_ops.training.entry: such a training, without Airflow or S3
                sagemaker          that training as a job of Amazon SageMaker: what goes in, what comes out
                job_answers        what SageMaker says of such jobs: failures, refusals, costs
                process            that training with another Python, and what a worker does beside it
                combine            the folds' documents in, the contents of model.h5, out_of_fold.parquet and training.json out
evaluation/     metrics            probabilities -> metrics, with confidence intervals
                intervals          95 % intervals that hold for few images
                comparison         the challenger beside another version, by honest answers of both
                external           the external test sets, without what shows own images
                evaluate           out-of-fold answers, comparisons, the file's check -> EvaluationDocument
                subgroups          the models on parts of the images: by site, device, year, …
                shortcuts          do the answers follow simple properties of the files
                grad_cam           where a network looked
                folder             the images of a labelled folder that a model can fairly be evaluated on
                run_evaluation     documents of a run in, evaluation.json and its predictions out
promotion/      gate               challenger, champion, thresholds -> GateDocument with reasons
                approval           the question that a person is asked, and what counts as an answer
                smoke_test         the uploaded file, in a process of its own
                promote            upload, smoke test, pointer, in an order that no crash harms
                model_card         what a version is, for people
                run_upload         documents of a run in, a version in use out
report/         figures            documents -> figures of matplotlib
                curves             ROC and precision-recall, with bands
                metric_names       how a metric is spelled, and which way it is better
                misclassified      missed cancers and false alarms
                galleries          the plots that show images
                plots              which plots a run has -> PNGs
                line_chart         small charts as SVG, while no PNG is drawn yet
                progress           how far a run is
                page               documents -> one HTML page
                publish            plots and report.html into the run's folder
                trace              every place that holds an image, or something made from it

operators/ sensors/ triggers/ links/    Airflow adapters
metrics         our own few, through Airflow's StatsD or OpenTelemetry
notifications   on failure and on verdict, by Airflow's notifiers
web/            the FastAPI app behind the UI's tabs, and who may see it
dags            the DAGs, made of all this
plugin          what Airflow registers: the pages, the tab, the links
doctor          facts about a deployment -> what is wrong with it, and the command that fixes it
deployment_facts    what doctor asks of Airflow, of the store and of this machine
cli             python -m bcc_ops check | evaluate | predict | models | trace | doctor
"""

__version__ = "0.1.0"
